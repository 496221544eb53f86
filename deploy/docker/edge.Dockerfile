# syntax=docker/dockerfile:1
# The agent, with its broker. Built by ./build from the repository's root, for amd64 and arm64.
ARG PYTHON_IMAGE=python:3.13-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY .ci/constraints.txt .ci/constraints.txt
COPY protos protos
COPY models models
COPY edge_agent edge_agent
COPY cloud_inference cloud_inference
RUN python -m venv /opt/eyeline \
    && /opt/eyeline/bin/pip install --no-cache-dir --no-compile -c .ci/constraints.txt ".[edge,websocket]"

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/eyeline /opt/eyeline
ENV PATH=/opt/eyeline/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
ENTRYPOINT ["edge-agent"]
