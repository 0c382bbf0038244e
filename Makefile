# Everything a clone needs: `make run` for a champion, `make test` for the tests. Both make .venv when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share what they made, so a file stays with one process; one thread each, so that they leave each other alone.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help install run test test-slow test-containers lint docs compile clean

help:            ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## the virtual environment with everything in it; TORCH_INDEX=URL takes torch from another index

# torch first, alone and by pip: pip takes the CPU build where a machine offers one, and resolved together with the rest torch would come
# as the newest build, gigabytes larger. uv installs the rest in a quarter of pip's time; pip fetches it where it is missing.
# TORCH_INDEX is one more index for torch alone. Its build wins over the package index's: a local version such as 2.13.0+cpu counts as newer.
TORCH_INDEX ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu

$(VENV)/installed: pyproject.toml constraints.txt
	@echo "Installing STAR into $(VENV), once: about 3 GB with a CPU build of torch, 6 to 8 GB with CUDA's libraries; 2 to 10 minutes."
	@test -n "$(TORCH_INDEX)" || test "$$(uname)" != Linux || command -v nvidia-smi >/dev/null || echo \
	  "No NVIDIA GPU found. If pip below downloads nvidia packages, stop and run: make install TORCH_INDEX=$(CPU_INDEX)"
	$(PYTHON) -m venv $(VENV)
	@echo "[1/2] torch"
	$(BIN)/pip install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	@echo "[2/2] the other packages"
	command -v uv >/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt uv
	PATH="$$PATH:$(CURDIR)/$(BIN)" uv pip install --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	touch $@

run: install     ## the whole pipeline with the tiny profile, to a registered champion
	$(BIN)/star run --config configs/tiny.yaml

test: install    ## the quick tests
	$(PYTEST) -m 'not slow'

test-slow: install ## the slow tests: kills in the middle of trainings, whole runs, DVC, the wheel
	$(PYTEST) -m slow

test-containers: install ## the image built, and the tiny pipeline with every task in a container of it (as root; podman, buildah, runc)
	tests/containers/build-image.sh cpu localhost/star-python:cpu
	STAR_TEST_IMAGE=localhost/star-python:cpu $(BIN)/python -m pytest tests/containers

lint: install    ## style, types, import layers, dead code, links of the documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/zensical build --clean --strict

docs: install    ## the documentation as a site, served at http://localhost:8000
	$(BIN)/zensical serve

compile: install ## what the profiles compile to, for review (deploy/pipelines)
	$(BIN)/python -W ignore -m star.pipelines.compile_snapshots

clean:           ## the environment and all runs
	rm -rf $(VENV) runs site .cache
