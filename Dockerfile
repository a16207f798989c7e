# The serving container (python -m mme.container) as an image for a SageMaker multi-model endpoint.
#
#   make image        builds it with docker, podman or buildah, and runs the tests of the contract against it
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
# Where pip installs from here comes as secrets, of which nothing stays in the image (scripts/image.py gives them).
# Bytecode is compiled now, for the user below may not write it, and some bases come without that of the standard
# library. What goes is for the libraries' own tests, and torch's headers, which serve only where there is a compiler.
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=pip.cert \
    export PIP_CONFIG_FILE=/run/secrets/pip.conf PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONDONTWRITEBYTECODE= \
 && pip install --compile ${PIP_OPTIONS} -c constraints.txt ".[container]" \
 && cd "$(python -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parents[1])')" \
 && find . -regextype posix-extended -type d \
      -regex '\./(torch/test|(numpy|pandas|sympy|networkx|mpmath)/(.*/)?tests)' -prune -exec rm -r {} + \
 && find torch/bin -mindepth 1 -maxdepth 1 -not -name torch_shm_manager -exec rm -r {} + \
 && { command -v c++ > /dev/null || rm -rf torch/include; } \
 && cd / && python -c "import mme.container.front.routes, torch, transformers, onnxruntime"

ARG RUN_AS=mme
RUN if [ "${RUN_AS}" != root ]; then useradd --create-home --uid 1000 "${RUN_AS}"; fi \
 && mkdir -p /opt/ml/models && chown "${RUN_AS}" /opt/ml /opt/ml/models
USER ${RUN_AS}
WORKDIR /opt/ml

EXPOSE 8080
# Exec form: the server itself gets the platform's SIGTERM. SageMaker adds the word serve.
ENTRYPOINT ["python", "-m", "mme.container"]
CMD ["serve"]
