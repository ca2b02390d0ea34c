# The image for the launcher of Kubernetes, and for anything else:
#   docker build -t registry/fedms:1 .                       NVIDIA GPUs, CUDA 13
#   docker build -t registry/fedms:1 --build-arg EXTRAS=tpu .
# CUDA comes with Python's packages; the node has the driver. Presets are read
# from the working directory: --flagfile=launch/presets/clip_vit_b16.flags.
FROM python:3.12-slim
ARG EXTRAS=gpu,privacy
WORKDIR /opt/fedms_jax
COPY . .
RUN pip install --no-cache-dir -c constraints/py312.txt ".[${EXTRAS}]"
CMD ["fedms", "--help"]
