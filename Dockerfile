# Four images. Models and items are mounted, not copied: /models (read-only) and /item_store (writable, see below).
#
#   engines      builds TensorRT engines, on the GPU that shall serve them    make docker-build-engines
#   server-cpu   the pip-only Triton, for machines without a GPU              make docker-build docker-serve
#   gateway      HTTP before either server                            docker compose --profile gateway up
#   server       NVIDIA's Triton container (the default)                      make docker-build docker-serve
#
# The default release is that of builders/core/versions.py. NVIDIA's containers of one release carry one TensorRT
# (https://docs.nvidia.com/deeplearning/frameworks/support-matrix/), so that the server loads what `engines` builds.
ARG TRITON_RELEASE=26.11
# Smaller: one that Triton's compose.py made with --backend python --backend onnxruntime --backend openvino
# --backend tensorrt. The whole container also carries backends that nothing here uses.
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:${TRITON_RELEASE}-py3
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:${TRITON_RELEASE}-py3
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm


# Engines belong to a GPU and an image build sees none: they are built when this image runs, into mounted folders.
FROM ${TENSORRT_IMAGE} AS engines

# --target: apart from the system's Python, which Ubuntu reserves for apt and which holds this container's TensorRT.
# uv: checks the hashes of what has some, while torch, whose file differs by index, brings what its CUDA build needs.
COPY requirements/builders.txt requirements/torch.txt /opt/tritonrank/requirements/
RUN pip3 install --no-cache-dir --target /opt/uv uv==0.13.9 \
    && /opt/uv/bin/uv pip install --no-cache --target /opt/builders \
        --requirement /opt/tritonrank/requirements/builders.txt --requirement /opt/tritonrank/requirements/torch.txt

# HOME: a --user without an entry in /etc/passwd has none, and torch and ModelOpt write caches there.
ENV PYTHONPATH=/opt/builders HOME=/tmp HF_HUB_OFFLINE=1

# 'make docker-build-engines' mounts the checkout over this copy; without one, mount build, model_repository, item_store.
WORKDIR /opt/tritonrank
COPY builders builders
COPY recipes recipes
COPY checkpoints checkpoints
COPY served served
COPY backends backends
RUN python3 -m builders --help

USER 1000:1000
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "python3", "-m", "builders"]
CMD ["engines"]


FROM ${PYTHON_IMAGE} AS server-cpu

COPY requirements/server.txt /opt/tritonrank/requirements/server.txt
RUN python3 -m venv /opt/server \
    && /opt/server/bin/pip install --no-cache-dir --only-binary=:all: --require-hashes --no-deps \
        --requirement /opt/tritonrank/requirements/server.txt
ENV TRITONRANK_SERVER_ENV=/opt/server

WORKDIR /opt/tritonrank
COPY server server
COPY backends backends
COPY deploy/ready.py deploy/ready.py
ENV TRITONRANK_ITEM_STORE=/item_store

# The admin key: made when a container starts, for its own programs:
# docker exec CONTAINER python3 -m server.control load rank
ENV TRITONRANK_ADMIN_KEY_FILE=/tmp/tritonrank-admin.key

USER 1000:1000
# gRPC, metrics. HTTP is for the container itself: docs/how-to/close-the-doors.md
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["/opt/server/bin/python3", "/opt/tritonrank/deploy/ready.py"]
# No restarts: a server that ends, or that has a dead stub, ends the container, and what runs it starts it again.
ENTRYPOINT ["python3", "-m", "server", "--host=0.0.0.0", "--repository=/models", "--store=/item_store", "--restarts=0"]
CMD ["--load=rank"]


FROM ${PYTHON_IMAGE} AS gateway

COPY requirements/gateway.txt /opt/tritonrank/requirements/gateway.txt
RUN python3 -m venv /opt/gateway \
    && /opt/gateway/bin/pip install --no-cache-dir --only-binary=:all: --require-hashes --no-deps \
        --requirement /opt/tritonrank/requirements/gateway.txt

WORKDIR /opt/tritonrank
COPY clients/tritonrank_client clients/tritonrank_client
COPY gateway gateway
ENV PYTHONPATH=/opt/tritonrank/clients

USER 1000:1000
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["/opt/gateway/bin/python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/healthz')"]
ENTRYPOINT ["/opt/gateway/bin/python3", "-m", "gateway", "--host=0.0.0.0"]
CMD ["--server=triton:8001", "--key-file=/run/secrets/gateway.keys"]


FROM ${TRITON_IMAGE} AS server

# At the pip-only server's pins. NumPy is the container's own; its Python backend is built for it.
# --no-deps: tokenizers needs huggingface_hub only to download, and the rest must not replace the container's packages.
# --break-system-packages: the Python backend runs the system's Python, which Ubuntu reserves for apt.
COPY requirements/container.txt /opt/tritonrank/requirements/container.txt
RUN pip3 install --no-cache-dir --require-hashes --no-deps --only-binary=:all: --break-system-packages \
        --requirement /opt/tritonrank/requirements/container.txt \
    && python3 -c "import cryptography.hazmat.primitives.asymmetric.ed25519, faiss, lmdb, numpy, onnxruntime, tokenizers"

# Mounted writable, because LMDB's readers write its lock file. LMDB knows its readers by process id: containers that
# share a store must share a PID namespace too (--pid=host), else the second one is refused with a LockError.
ENV TRITONRANK_ITEM_STORE=/item_store
# Where fused models keep scores, if their recipe says so.
ENV TRITONRANK_SCORE_CACHE=/item_store/score_cache
# As in the other server.
ENV TRITONRANK_ADMIN_KEY_FILE=/tmp/tritonrank-admin.key

WORKDIR /opt/tritonrank
COPY server server
COPY deploy/ready.py deploy/serve.py deploy/

# The base image's triton-server, as a number so that Kubernetes' runAsNonRoot can tell. This user, or that of --user,
# must be able to read /models and to write /item_store/lock.mdb.
USER 1000:1000
# gRPC, metrics
EXPOSE 8001 8002
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python3", "/opt/tritonrank/deploy/ready.py"]

# NVIDIA's entry point checks the driver, then becomes serve.py, which checks the engines and becomes the guard of
# tritonserver, so that signals reach it. A model that cannot be loaded ends the server, as does a dead stub. 4 s: an
# idle HTTP connection holds up the exit until then; it answers for 5 s before that, and 'docker stop' kills after 10.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "python3", "/opt/tritonrank/deploy/serve.py", "/models", \
    "--model-control-mode=explicit", "--exit-timeout-secs=4", "--metrics-config=summary_latencies=true", \
    "--http-address=127.0.0.1", "--metrics-address=0.0.0.0"]

# Arguments after the image's name take this one's place: --load-model=rank --load-model=rank_two_tower_fp32_onnx
CMD ["--load-model=rank"]
