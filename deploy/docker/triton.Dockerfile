# syntax=docker/dockerfile:1
# Triton with what our Python backend needs. Its own image is set by ./build: choose one whose CUDA your
# driver takes, by digest.
ARG TRITON_IMAGE

FROM ${TRITON_IMAGE}
ARG NUMPY_VERSION
ARG ONNXRUNTIME_VERSION
RUN pip install --no-cache-dir "numpy==${NUMPY_VERSION}" "onnxruntime==${ONNXRUNTIME_VERSION}"
USER 10001:10001
ENTRYPOINT ["tritonserver"]
