# Everything of the project for GPUs and CPUs: `make build-and-run`. The code is mounted at /app, so edits need no rebuild.
# CUDA comes with torch, at the version that requirements.lock holds; the host brings the driver alone.
FROM ubuntu:24.04

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# What NVIDIA's toolkit hands into the container; its own images set the same.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# Triton compiles with a C compiler; libgl and glib are what OpenCV-based readers load. Their versions are the
# distribution's: one that was named here would be gone from its mirrors with the next repair.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv gcc g++ make libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app
# First what changes rarely: the dependencies, as `make setup` installs them, tests and linter included.
COPY requirements.lock ./
RUN python3 -m venv "$VIRTUAL_ENV" \
    && awk '/^(pip|setuptools)==/, !/\\$/' requirements.lock > build.lock \
    && pip install --require-hashes -r build.lock \
    && pip install --require-hashes --no-build-isolation -r requirements.lock

COPY . .
RUN pip install --no-deps --no-build-isolation -e .
# Logins and downloads outlive a container, and whoever runs it may write there.
RUN mkdir -p /cache && chmod 1777 /cache
ENV HOME=/cache HF_HOME=/cache/huggingface
VOLUME /cache
# The Makefile uses this environment instead of making one.
ENV PY=/opt/venv/bin/python
# Nothing runs as root (1000 is the image's own user); the make targets name the user who starts them, so that what is
# written to /app is theirs.
USER 1000
CMD ["bash"]
