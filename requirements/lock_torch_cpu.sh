#!/usr/bin/env bash
# Prints a lock of torch's CPU builds from the page of PyTorch's index: lock_torch_cpu.sh https://download.pytorch.org/whl/cpu
# The version is that of constraints.txt. For macOS the index has the files of PyPI, without "+cpu" in their version.
set -euo pipefail
cd "$(dirname "$0")/.."
version=$(sed -n 's/^torch==//p' constraints.txt)
page=$(curl --fail --silent --show-error "$1/torch/")

print_requirement() { # VERSION PLATFORM FILES: one requirement with the sha256 of every file on the page whose name matches FILES
    local hashes
    hashes=$(grep -oE "torch-$3[^\"#]*\.whl#sha256=[0-9a-f]{64}" <<<"$page" | sed 's/.*#sha256=/    --hash=sha256:/' | sort -u) || true
    [ -n "$hashes" ] || { echo "no file of torch $1 for $2 with a sha256 on the page" >&2; exit 1; }
    printf "torch==%s ; sys_platform == '%s' \\\\\n%s\n" "$1" "$2" "$(sed '$!s/$/ \\/' <<<"$hashes")"
}

echo "# CPU builds of torch on $1. \`make lock-torch-cpu\` writes this file."
pythons='cp3(11|12|13|14)-cp3(11|12|13|14)-'
print_requirement "$version" darwin "$version-${pythons}macosx"
print_requirement "$version+cpu" linux "$version(%2B|\\+)cpu-${pythons}manylinux"
