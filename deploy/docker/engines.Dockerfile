# syntax=docker/dockerfile:1
# What builds plans beside Triton: the cloud side with TensorRT. TENSORRT_VERSION must be that of your Triton image.
ARG PYTHON_IMAGE=python:3.12-slim-bookworm

FROM ${PYTHON_IMAGE}
ARG TENSORRT_VERSION
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/constraints.txt
COPY protos protos
COPY models models
COPY edge_agent edge_agent
COPY cloud_inference cloud_inference
RUN python -m venv /opt/eyeline \
    && /opt/eyeline/bin/pip install --no-cache-dir --no-compile -c .ci/constraints.txt ".[cloud]" \
        "tensorrt==${TENSORRT_VERSION}"
ENV PATH=/opt/eyeline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["cloud-inference"]
