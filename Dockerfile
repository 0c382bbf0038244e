# Images for the pipeline's tasks: a virtual environment in /opt/star, an unprivileged user, no compiler.
#   docker build --target cpu  -t star-python:cpu  --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker build --target cuda -t star-python:cuda --build-arg COMMIT=$(git rev-parse HEAD) .   (torch brings the CUDA libraries)
#   docker build --target bfcl -t star-python:bfcl ...   (cuda plus the environment of the BFCL harness, for `evaluate.suites`)
# BASE may be any image that has Python 3.11 or newer as python3, with its venv module and pip.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /build
RUN python3 -m venv /opt/star
COPY constraints.txt pyproject.toml ./
# The dependencies are installed in layers of their own, so that an edit of the code does not install them again. Two extras are part of
# the image: PostgreSQL's driver, because the MLflow server runs from it (deploy/base/mlflow.yaml), and Kubeflow Trainer's client, because
# tasks start TrainJobs.
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; extras = project['optional-dependencies']; \
    print(*project['dependencies'], *extras['mlflow'], *extras['kubernetes'], sep='\n')" > requirements.txt

FROM build AS build-cpu
# CPU builds of torch are a tenth of the size and have their own index. An empty value uses the default index.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch is installed first and alone. Resolved together with the other packages, pip would choose the newest build, which has CUDA.
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
