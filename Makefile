# tritonrank: 'make help' lists the targets. Everything is set up on first use; nothing is installed outside this folder.

PYTHON  ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV    := .venv
SERVER_VENV := .venv-server
RUN     := $(VENV)/bin/python
export HF_HUB_OFFLINE := 1

CONFIG    ?=
ALL       ?=
SERVE     ?=
FRESH     ?=
QUERIES   ?=
RECIPES   ?=
VARIANT   ?=
MODEL     ?=
REQUIRE_TENSORRT ?=
MINUTES   ?=
ITEMS     ?=
ROUNDS    ?=
PART      ?=
PORT      ?=

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu check check-supply-chain setup data train export build-engines quality recommend repository pareto publish serve search reload \
    gateway perf bench scale soak outages chaos peers report gpu-report setup-tensorrt-cpu gpu-pack docker-build docker-build-engines docker-serve docs docs-serve lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## from a fresh clone to ranked lists and a report: three variants (QUERIES=10: fewer queries; FRESH=1: all anew)
	@$(RUN) -m perf demo $(if $(QUERIES),--queries $(QUERIES)) $(if $(FRESH),--fresh)

test: setup ## the tests, on the real Triton, without the slow tier
	@$(RUN) -m pytest -m "not slow" --numprocesses logical --maxprocesses 4 --dist loadfile \
	    --no-loadscope-reorder $(ARGS)

test-slow: setup ## the slow tier: TensorRT 11's builder on this CPU, the kit packed for a GPU machine, recommenders of three libraries
	@$(RUN) -m pytest -m slow $(ARGS)

check-supply-chain: setup ## what both environments hold (CycloneDX, build/sbom), and what is known against it (pip-audit; asks pypi.org)
	@test -x build/supply-chain/bin/pip-audit || { $(PYTHON) -m venv --clear build/supply-chain && \
	    build/supply-chain/bin/pip install --quiet --require-hashes --no-deps --requirement requirements/supply-chain.txt; }
	@mkdir -p build/sbom
	@for name in $(VENV) $(SERVER_VENV); do \
	    build/supply-chain/bin/cyclonedx-py environment --output-file build/sbom/$${name#.}.cdx.json $$name/bin/python || exit; done
	@ls build/sbom/*.cdx.json
	@build/supply-chain/bin/pip-audit --strict --disable-pip --no-deps --requirement requirements/torch.txt
	@build/supply-chain/bin/pip-audit --strict --disable-pip --require-hashes $(foreach name,builders server,--requirement requirements/$(name).txt)

check: setup ## lint, layers and types
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@PYTHONPATH=.:clients $(VENV)/bin/lint-imports --no-logo
	@$(VENV)/bin/hadolint Dockerfile

setup: $(VENV)/.ready $(SERVER_VENV)/.ready ## make the two environments (part of every target that needs them)

$(VENV)/.ready: requirements/builders.txt requirements/torch.txt clients/pyproject.toml
	@$(call make_environment,$(VENV),builders',$<)
	@$(VENV)/bin/pip install --quiet --progress-bar=on --disable-pip-version-check --requirement requirements/torch.txt
	@$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable clients
	@touch $@

$(SERVER_VENV)/.ready: requirements/server.txt
	@$(call make_environment,$(SERVER_VENV),server's,$<)
	@touch $@

# $(call make_environment,FOLDER,WHOSE,REQUIREMENTS)
define make_environment
$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else "Python %d.%d found, 3.11 or 3.12 wanted: make PYTHON=/path/to/python3.11" % v)'
echo "installing the $(2) environment into $(1) (one to three minutes, once)"
$(PYTHON) -m venv --clear $(1)
$(1)/bin/pip install --quiet --progress-bar=on --disable-pip-version-check --require-hashes --no-deps --requirement $(3)
endef

data: setup ## find, fetch or generate the data, and say which
	@$(RUN) -m builders data

train: setup ## train every ranker that has a trainer (checkpoints/); minutes each, RECIPES="recipes/sasrec.toml": only those
	@$(RUN) -m builders train $(RECIPES)

export: setup ## rankers => ONNX, FP32 and INT8, checked and gated
	@$(RUN) -m builders export

build-engines: export ## ... and TensorRT engines, on a machine that has TensorRT (REQUIRE_TENSORRT=1: fail where not)
	@$(RUN) -m builders engines $(if $(REQUIRE_TENSORRT),--require-tensorrt)

quality: setup ## quality and parity of every variant, offline
	@$(RUN) -m builders quality

recommend: setup ## quality of the recommenders, through the served endpoints
	@$(RUN) -m perf recommend

repository: setup ## ... => item store and model_repository/
	@$(RUN) -m builders repository

pareto: setup ## every variant of a recipe: gated, served, loaded => Pareto page (RECIPES=recipes/ncf.toml; FRESH=1: measure anew)
	@$(RUN) -m perf pareto $(RECIPES) $(if $(FRESH),--fresh)

publish: setup ## point `rank` (or `recommend`) at VARIANT; none = what 'python -m builders choose' chose
	@$(RUN) -m builders publish $(VARIANT)

serve: setup ## start Triton on model_repository/ (SERVE="rank_two_tower_fp32_onnx ...": those too; ALL=1; CONFIG=machine)
	@$(RUN) -m server $(if $(ALL),--all,--load rank $(foreach model,$(SERVE),--load $(model))) $(if $(CONFIG),--config-name $(CONFIG))

search: setup ## a search page over a Triton of its own: first stage beside ranking, what moved and why (PORT=8080)
	@PYTHONPATH=.:clients $(RUN) -m clients.examples.search $(if $(PORT),--port $(PORT))

reload: setup ## make the running server take up what was published (MODEL=rank_candidate; none = rank)
	@$(RUN) -m server.control load $(or $(MODEL),rank)

gateway: setup ## HTTP before the running server, on 127.0.0.1:8080: rerank interfaces of Cohere, TEI, NeMo and ours (ARGS="--help")
	@PYTHONPATH=.:clients $(RUN) -m gateway $(ARGS)

perf: setup ## perf_analyzer sweep with real requests against every endpoint
	@$(RUN) -m perf sweep

bench: setup ## the figures to reach, each with its limit
	@$(RUN) -m perf bench

scale: setup ## what a request costs as candidates, catalogue, requests at once and servers grow (ITEMS="10000 2000000")
	@$(RUN) -m perf scale $(foreach count,$(ITEMS),--items $(count))

soak: setup ## ten minutes (MINUTES=30) of load beside refresh, retraining, publishing, rolling back and kills: no wrong answer
	@$(RUN) -m perf soak $(if $(MINUTES),--minutes $(MINUTES))

outages: setup ## ten minutes (MINUTES=30) of load with a fault every 20 seconds: kills, a full disk, overload, malformed requests
	@$(RUN) -m perf outages $(if $(MINUTES),--minutes $(MINUTES))

chaos: setup ## what callers notice while servers are killed, hung, flooded and restarted one after another (PART=killed: one of them)
	@$(RUN) -m perf chaos $(if $(PART),--part $(PART))

peers: setup ## what else serves the same weights, asked the same in turn (ROUNDS=10; environments in build/peers: gigabytes, minutes)
	@$(RUN) -m perf peers $(if $(ROUNDS),--rounds $(ROUNDS))

test-gpu: setup ## the tests that need a GPU
	@$(RUN) -m pytest -m gpu -s $(ARGS)

setup-tensorrt-cpu: setup ## TensorRT 11's builder without a GPU, for a slow test of the calls to it (build/tensorrt-cpu)
	@$(RUN) -m tests.support.tensorrt_cpu

gpu-report: setup ## every figure that only a GPU can give
	@$(RUN) -m perf gpu-report

CONTAINER ?= $(notdir $(shell command -v docker || command -v podman))
HAS_GPU   := $(if $(shell command -v nvidia-smi),1)
IMAGE     := tritonrank-server$(if $(HAS_GPU),,-cpu)
PODMAN    := $(findstring podman,$(CONTAINER))
GPUS      := $(if $(PODMAN),--device nvidia.com/gpu=all,--gpus all)
AS_ME     := --user $(shell id -u):$(shell id -g) $(if $(PODMAN),--userns keep-id)
BUILD     := $(CONTAINER) build $(if $(PODMAN),--format docker)
ENGINES   := $(CONTAINER) run --rm $(GPUS) $(AS_ME) --shm-size 1g --volume "$(CURDIR):/opt/tritonrank" \
             $(if $(TRITONRANK_DATA),--volume "$(TRITONRANK_DATA):/data:ro" --env TRITONRANK_DATA=/data) tritonrank-engines

gpu-pack: export ## folders that carry engines' builds and GPU figures to a GPU machine without a network (OUT=build/airgap)
	@PYTHONPATH=. $(RUN) -m deploy.airgap.pack $(or $(OUT),build/airgap) $(ARGS)

docker-build: ## the server's image: NVIDIA's container where there is a GPU, else the pip-only server
	@$(BUILD) --target $(IMAGE:tritonrank-%=%) --tag $(IMAGE) .

docker-build-engines: ## the image that builds engines, and in it 'export' and 'engines' for this machine's GPU
	@$(BUILD) --target engines --tag tritonrank-engines .
	@$(ENGINES) export
	@$(ENGINES) engines

docker-serve: ## serve model_repository/ from the image that docker-build made
	@$(CONTAINER) run --rm $(if $(HAS_GPU),$(GPUS)) $(AS_ME) --shm-size 256m --stop-timeout 20 \
	    --publish 127.0.0.1:8001-8002:8001-8002 --volume "$(CURDIR)/model_repository:/models:ro" \
	    --volume "$(CURDIR)/item_store:/item_store" $(IMAGE)

report: setup ## the report, from the figures that are there
	@$(RUN) -m perf report

docs: setup ## the pages of docs/ as a site in build/docs, broken links refused
	@$(RUN) -m docs.generate
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --quiet --strict && echo "docs: build/docs/index.html"

docs-serve: docs ## ... and served with search on 127.0.0.1:8010 until Ctrl-C, built anew when a page changes
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve --dev-addr 127.0.0.1:8010

lock: ## resolve requirements/*.in anew into requirements/*.txt
	@$(call lock,supply-chain,what 'make check-supply-chain' runs)
	@$(call lock,builders,the builders' environment but torch)
	@$(call lock,server,the server's environment)
	@{ echo "# Every package of the gateway's image, pinned with its hashes. Made from gateway.in by 'make lock'; edit that one."; \
	   $(HASHES) --constraint requirements/builders.txt requirements/gateway.in; } > requirements/gateway.txt
	@{ echo "# What Triton's container lacks of the server's environment. Made by 'make lock'."; \
	   printf '%s\n' $(OF_CONTAINER) | $(HASHED) --constraint build/lock/pins.txt -; } > requirements/container.txt
	@rm -rf build/lock

# $(call lock,NAME,WHAT)
define lock
$(PYTHON) -m venv --clear build/lock
build/lock/bin/pip install --quiet --requirement requirements/$(1).in
build/lock/bin/pip freeze --all | grep -vE '^(torch|pip)==' > build/lock/pins.txt
build/lock/bin/pip install --quiet uv
{ echo "# Every package of $(2), pinned with its hashes. Made from $(1).in by 'make lock'; edit that one."; \
  $(HASHED) build/lock/pins.txt; } > requirements/$(1).txt
endef

HASHES       := build/lock/bin/uv pip compile --quiet --generate-hashes --no-header --no-annotate
HASHED       := $(HASHES) --no-deps
OF_CONTAINER := lmdb onnxruntime tokenizers cryptography cffi pycparser faiss-cpu packaging

clean: ## remove everything that make made
	rm -rf $(VENV) $(SERVER_VENV) build item_store admin.key model_repository/manifest.json model_repository/manifest.json.sig model_repository/.lock .pytest_cache .ruff_cache .mypy_cache
	find model_repository -mindepth 2 -maxdepth 2 -type d \( -name '[0-9]*' -o -name '.new-*' -o -name configs \) -exec rm -rf {} +
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf clients/*.egg-info
