# Images for the pipeline's tasks: a virtual environment in /opt/star, an unprivileged user, no compiler.
#   docker build --target cpu  -t star-python:cpu  --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker build --target cuda -t star-python:cuda --build-arg COMMIT=$(git rev-parse HEAD) .   (torch brings the CUDA libraries)
#   docker build --target vllm -t star-python:vllm ...   (for GPU nodes whose profiles set `vllm`, on x86-64 with Python 3.11; has a C compiler)
#   docker build --target bfcl -t star-python:bfcl ...   (vllm plus the environment of the BFCL harness, for `evaluate.suites`)
# BASE may be any image that has Python 3.11 to 3.14 as python3, with its venv module and pip. Name it with its digest, as here: a tag alone
# can be moved. The digest of a tag: docker buildx imagetools inspect python:3.11-slim
#
# Behind a company's network (docs/kubernetes.md#behind-a-companys-network): index, certificate and proxy are secrets of the build, which no
# layer keeps: --secret id=pip.conf,src=pip.conf, and likewise netrc, ca.pem, apt.conf, sources.list. All may be missing.
ARG BASE=python:3.11.16-slim-trixie@sha256:be1575ed968de893bd54f4c56315ff7c4736ce522c1bca08fd521731aafc0d76

# Every file that is installed is compared with its sha256 in a lock (`make lock`), and each step asks one index only. Two extras are part
# of the image: what the MLflow server needs, which runs from it (deploy/base/mlflow.yaml), and Kubeflow Trainer's client, because tasks
# start TrainJobs. The dependencies are layers of their own, so that an edit of the code does not install them again.
FROM ${BASE} AS environment
WORKDIR /build
RUN python3 -m venv /opt/star
ENV PATH=/opt/star/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_CONFIG_FILE=/run/secrets/pip.conf NETRC=/run/secrets/netrc
COPY requirements requirements
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=netrc --mount=type=secret,id=ca.pem \
    pip install --require-hashes --no-deps --requirement requirements/build.lock

FROM environment AS build
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=netrc --mount=type=secret,id=ca.pem \
    pip install --require-hashes --no-deps --no-build-isolation --requirement requirements/image.lock

FROM build AS build-cpu
# CPU builds of torch are a tenth of the size and have their own index. Another index needs a lock with the sha256 of its files; an empty
# TORCH_INDEX is the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_LOCK=requirements/torch-cpu.lock
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=netrc --mount=type=secret,id=ca.pem \
    pip install --require-hashes --no-deps ${TORCH_INDEX:+--index-url ${TORCH_INDEX}} --requirement ${TORCH_LOCK}
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM build AS build-cuda
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=netrc --mount=type=secret,id=ca.pem \
    pip install --require-hashes --no-deps --requirement requirements/torch-pypi.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .

# vLLM excludes some of the other images' versions, so its packages have a lock of their own, torch and CUDA's libraries among them.
FROM environment AS build-vllm
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=netrc --mount=type=secret,id=ca.pem \
    pip install --require-hashes --no-deps --no-build-isolation --requirement requirements/vllm.lock
COPY . .
RUN pip install --no-deps --no-build-isolation .

FROM ${BASE} AS runtime
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="star" org.opencontainers.image.revision="${COMMIT}"
ENV PATH=/opt/star/bin:$PATH STAR_COMMIT=${COMMIT} PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 10001 star
USER 10001
WORKDIR /home/star
ENTRYPOINT []
CMD ["star", "--help"]

FROM runtime AS cuda
COPY --from=build-cuda /opt/star /opt/star

# Triton compiles vLLM's kernels when it starts, for which it needs a C compiler. `spawn`, because a stage has used CUDA before vLLM starts.
FROM runtime AS vllm
USER root
RUN --mount=type=secret,id=apt.conf --mount=type=secret,id=sources.list --mount=type=secret,id=ca.pem \
    if [ -f /run/secrets/apt.conf ]; then export APT_CONFIG=/run/secrets/apt.conf; fi; apt-get update && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
USER 10001
ENV VLLM_WORKER_MULTIPROC_METHOD=spawn VLLM_NO_USAGE_STATS=1
COPY --from=build-vllm /opt/star /opt/star

FROM vllm AS bfcl
RUN --mount=type=secret,id=pip.conf,uid=10001 --mount=type=secret,id=netrc,uid=10001 --mount=type=secret,id=ca.pem,uid=10001 \
    PIP_CONFIG_FILE=/run/secrets/pip.conf NETRC=/run/secrets/netrc python3 -m star.evaluation.bfcl.environment

FROM runtime AS cpu
COPY --from=build-cpu /opt/star /opt/star
