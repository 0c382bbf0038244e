# The images of the pipeline's tasks: one venv in /opt/star on a plain base, run as a user without rights, without a compiler.
#   docker build --target cpu  -t star-python:cpu  --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker build --target cuda -t star-python:cuda --build-arg COMMIT=$(git rev-parse HEAD) .   (CUDA's libraries come with torch)
#   docker build --target bfcl -t star-python:bfcl ...   (cuda with the environment of the Berkeley harness, for `evaluate.suites`)
# BASE is any image with Python 3.11 or newer as python3, its venv module and pip.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python3 -m venv /opt/star
COPY constraints.txt pyproject.toml ./
# The dependencies have layers of their own: a change of the code does not install them again. With PostgreSQL's driver the same
# image serves MLflow (deploy/base/mlflow.yaml), with Kubeflow Trainer's client it starts trainings on several nodes.
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = project['optional-dependencies']; \
    print(*project['dependencies'], *extras['mlflow'], *extras['kubernetes'], sep='\n')" > requirements.txt

FROM build AS build-cpu
# Builds of torch without CUDA are a tenth of the size; they have an index of their own. Empty: the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch first, alone: resolved together with the rest it would come as the newest build.
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN /opt/star/bin/pip install --no-cache-dir --no-deps .

FROM build AS build-cuda
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt torch
RUN /opt/star/bin/pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY . .
RUN /opt/star/bin/pip install --no-cache-dir --no-deps .

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

FROM cuda AS bfcl
RUN python3 -m star.evaluation.bfcl.environment

FROM runtime AS cpu
COPY --from=build-cpu /opt/star /opt/star
