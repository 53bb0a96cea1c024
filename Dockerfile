# Everything of the project on one CUDA machine: `make build-and-run`. The code is mounted at /app, so edits need no rebuild.
FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04

ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 VIRTUAL_ENV=/opt/venv PATH=/opt/venv/bin:$PATH
# Triton compiles with a C compiler; libgl and glib are what OpenCV-based readers load.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-dev python3-venv gcc g++ make libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv "$VIRTUAL_ENV" && pip install --upgrade pip "setuptools>=77" wheel

WORKDIR /app
# First what changes rarely: the dependencies, by an install of the bare package.
COPY setup.py pyproject.toml README.md ./
COPY egom2p/__init__.py egom2p/__init__.py
RUN pip install -e '.[anytoany,viz]'

COPY . .
RUN pip install --no-deps -e .
# The Makefile uses this environment instead of making one.
ENV PY=/opt/venv/bin/python
CMD ["bash"]
