# The server image: NVIDIA's Triton container and the Python packages that the served models import. Models and items
# are mounted, not copied: /models (read-only) and /item_store (writable, see below).
#
#   docker build --tag tritonrank-server .
#   docker build --tag tritonrank-server --build-arg TRITON_VERSION=<yy.mm> .
#
# The only place that names the container's release. 26.11 mends a use-after-free in Triton's dynamic batcher.
ARG TRITON_VERSION=26.11
FROM nvcr.io/nvidia/tritonserver:${TRITON_VERSION}-py3

# The pip-only server's pins, as constraints. NumPy is the container's own; its Python backend is built for it.
# --no-deps: tokenizers needs huggingface_hub only to download, and the rest must not replace the container's packages.
# --break-system-packages: the Python backend runs the system's Python, which Ubuntu reserves for apt.
COPY requirements/server.txt /opt/tritonrank/server.txt
RUN pip3 install --no-cache-dir --no-deps --only-binary=:all: --break-system-packages \
        --constraint /opt/tritonrank/server.txt lmdb tokenizers \
    && python3 -c "import lmdb, numpy, tokenizers"

# Mounted writable, because LMDB's readers write its lock file. LMDB knows its readers by process id: containers that
# share a store must share a PID namespace too (--pid=host), else the second one is refused with a LockError.
ENV TRITONRANK_ITEM_STORE=/item_store

# The base image's triton-server, as a number so that Kubernetes' runAsNonRoot can tell. This user, or that of --user,
# must be able to read /models and to write /item_store/lock.mdb.
USER 1000:1000

# HTTP, gRPC, metrics
EXPOSE 8000 8001 8002

# http.client reads no proxy variables. Ready means that every loaded model takes requests.
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s --retries=3 CMD ["python3", "-c", \
    "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=2); c.request('GET', '/v2/health/ready'); raise SystemExit(c.getresponse().status != 200)"]

# NVIDIA's entry point checks the driver, then becomes tritonserver, so that signals reach it. A model that cannot be
# loaded ends the server. 6 s: an idle HTTP connection holds up the exit until then, and 'docker stop' kills after 10.
ENTRYPOINT ["/opt/nvidia/nvidia_entrypoint.sh", "tritonserver", "--model-repository=/models", \
    "--model-control-mode=explicit", "--exit-timeout-secs=6"]

# Arguments after the image's name take this one's place: --load-model=rank --load-model=rank_two_tower_fp32_onnx
CMD ["--load-model=rank"]
