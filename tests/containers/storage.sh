# Keeps the images and containers of the tests in build/containers, apart from the machine's own. Source it at the root of the checkout.
store=$(pwd)/build/containers
mkdir -p "$store"
cat >"$store/containers.conf" <<END
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
runtime = "runc"
END
export CONTAINERS_CONF=$store/containers.conf
place=(--root "$store/storage" --runroot "$store/run" --storage-driver "${STORAGE_DRIVER:-overlay}")
