# The serving container (python -m mme.container) as an image for a SageMaker multi-model endpoint.
#
#   docker build -t mme .          or          podman build --format docker -t mme .
#
# --build-arg BASE=…         another base with Python 3.10 to 3.12, such as an AWS deep learning container: what it
#                            has of torch and transformers within the bounds of pyproject.toml is kept
# --build-arg PIP_OPTIONS=…  options for pip, such as an index that has torch without CUDA (a far smaller image)
# --build-arg RUN_AS=root    for a platform that gives the models to root alone
ARG BASE=python:3.12-slim-bookworm
FROM ${BASE}

# SageMaker refuses an image without the first in multi-model mode; the second lets it choose the port.
LABEL com.amazonaws.sagemaker.capabilities.multi-models=true \
      com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      org.opencontainers.image.title="mme" \
      org.opencontainers.image.description="Many transformers models behind one SageMaker multi-model endpoint" \
      org.opencontainers.image.licenses="Apache-2.0"

ENV PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    MME_CONTAINER_HOST=0.0.0.0

WORKDIR /opt/mme
ARG PIP_OPTIONS=""
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
COPY model_code ./model_code
# Compiled now: the user below may not write there, and the parent imports a lot.
RUN pip install --compile ${PIP_OPTIONS} -c constraints.txt ".[container]"

ARG RUN_AS=mme
RUN if [ "${RUN_AS}" != root ]; then useradd --create-home --uid 1000 "${RUN_AS}"; fi \
 && mkdir -p /opt/ml/models && chown "${RUN_AS}" /opt/ml /opt/ml/models
USER ${RUN_AS}
WORKDIR /opt/ml

EXPOSE 8080
# Exec form: the server itself gets the platform's SIGTERM. SageMaker adds the word serve.
ENTRYPOINT ["python", "-m", "mme.container"]
CMD ["serve"]
