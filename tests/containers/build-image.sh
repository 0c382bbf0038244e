#!/usr/bin/env bash
# Builds a target of the Dockerfile without a Docker daemon, as root: build-image.sh TARGET TAG
# BASE names an existing image; without it debootstrap creates a Debian image. BUILDAH_OPTIONS are passed to buildah (mounts, arguments).
set -euo pipefail
cd "$(dirname "$0")/../.."
source tests/containers/storage.sh
target=$1 tag=$2
base=${BASE:-localhost/star-base:bookworm}
if ! podman "${place[@]}" image exists "$base"; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$folder" http://deb.debian.org/debian
    tar -C "$folder" -c . | podman "${place[@]}" import - "$base"
fi
# shellcheck disable=SC2086
buildah "${place[@]}" bud --isolation=chroot --network=host --layers --target "$target" --tag "$tag" \
    --build-arg BASE="$base" --build-arg COMMIT="$(git rev-parse HEAD)" ${BUILDAH_OPTIONS:-} .
