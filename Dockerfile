# The image of the pipeline's tasks. The base is an argument: a CUDA base for GPU nodes.
#   docker build -t star-python .
#   docker build -t star-python:bfcl --target bfcl .   (with the environment of the Berkeley harness, for `evaluate.suites: [heldout, bfcl]`)
#   docker build -t star-python:cuda --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04 .   (needs python3.11+ and pip in the base)
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python3 -m venv /opt/star
COPY constraints.txt ./
# torch first, alone: resolved together with the rest it would come as the newest build.
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY star star
COPY components components
COPY pipelines pipelines
COPY configs configs
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM ${BASE} AS star
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="star" org.opencontainers.image.revision="${COMMIT}"
COPY --from=build /opt/star /opt/star
ENV PATH=/opt/star/bin:$PATH STAR_COMMIT=${COMMIT} PYTHONUNBUFFERED=1 HF_HUB_DISABLE_TELEMETRY=1
RUN useradd --create-home --uid 10001 star
USER 10001
WORKDIR /home/star
ENTRYPOINT []
CMD ["star", "--help"]

FROM star AS bfcl
RUN python3 -m star.evaluation.bfcl_environment

FROM star
