# aigi with all that it needs. For a GPU, name an image that has CUDA's libraries:
#   docker build -t aigi .
#   docker build -t aigi:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
#   docker run --rm -v "$PWD/runs:/data/runs" aigi demo
#   docker run --rm --gpus all -v "$PWD/runs:/data/runs" -v "$HOME/hub:/cache" aigi:cuda run quickstart
ARG BASE=debian:bookworm-slim
FROM ${BASE}

RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY pipeline pipeline
COPY prompts prompts
COPY manifests manifests
COPY workflows workflows
RUN python3 -m venv /opt/aigi \
    && /opt/aigi/bin/pip install --no-cache-dir --constraint constraints.txt \
        '.[all,codecs,jxl,lora,metrics,s3,train]' \
    && rm -rf /src

# Files in mounted folders belong to whoever is named with --user; models are in the cache.
ENV PATH=/opt/aigi/bin:$PATH HF_HOME=/cache HOME=/data
WORKDIR /data
RUN mkdir -p /cache && chmod 1777 /data /cache
USER 1000:1000
ENTRYPOINT ["aigi"]
CMD ["--help"]
