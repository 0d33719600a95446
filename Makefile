# `make` alone prints what there is. Each target is a few words a person can type in its place.
.DEFAULT_GOAL := help
SHELL := bash
CACHE ?= $(if $(HEADRACE_CACHE),$(HEADRACE_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/headrace)
export HEADRACE_CACHE := $(CACHE)
UV_VERSION := 0.13.9
UV := $(CACHE)/uv-$(UV_VERSION)/bin/uv
export UV_CACHE_DIR := $(CACHE)/uv-cache
BIN := .venv/bin
PYTHON ?= python3
# Of the GPU image: as in runtime/Dockerfile.
VLLM_VERSION := 0.32.0
ENGINE_PLATFORM := --python-version 3.12 --python-platform x86_64-manylinux_2_28

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV):
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(CACHE)/uv-$(UV_VERSION)
	$(CACHE)/uv-$(UV_VERSION)/bin/pip install --quiet uv==$(UV_VERSION)

.venv/stamp: tests/requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --no-python-downloads -p $(PYTHON) .venv
	$(UV) pip sync --quiet -p $(BIN)/python --require-hashes tests/requirements.lock
	$(UV) pip install --quiet -p $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: install
install: .venv/stamp ## Development environment in .venv, from the lock file

.PHONY: lock
lock: | $(UV) ## Resolve the dependencies anew into the lock files (hashes, no addresses)
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --extra dev --python-version 3.11 pyproject.toml --constraint tests/build-requirements.txt tests/build-requirements.txt -o tests/requirements.lock
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --extra operator --python-version 3.11 pyproject.toml -o operator/requirements.lock
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --extra gateway --python-version 3.11 pyproject.toml -o runtime/requirements.lock
	echo 'vllm==$(VLLM_VERSION)' | $(UV) pip compile --quiet $(ENGINE_PLATFORM) --extra runtime pyproject.toml - -o $(CACHE)/engine-constraints.txt
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header $(ENGINE_PLATFORM) --extra gateway pyproject.toml runtime/engine-requirements.in --constraint $(CACHE)/engine-constraints.txt --overrides runtime/engine-overrides.in -o runtime/engine-requirements.lock
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_36 --override local/engine/overrides.in local/engine/requirements.in -o local/engine/requirements.lock
	$(UV) pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 local/engine/models.in -o local/engine/models.lock
	$(UV) pip compile --quiet --no-deps --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 bench/dynamo.in -o bench/dynamo.lock
	$(UV) pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11 --python-platform x86_64-manylinux_2_36 bench/vllm_router.in -o bench/vllm_router.lock

.PHONY: guard
guard: ## Folders that break Python when they become packages
	@! ls operator/__init__.py runtime/__init__.py 2>/dev/null || { echo 'operator/ and runtime/ are folders of source, never packages: remove the __init__.py'; exit 1; }
	@! find tests -name __init__.py | grep . || { echo 'no __init__.py anywhere under tests/'; exit 1; }

.PHONY: lint
lint: install guard ## Style, and the import contracts
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .
	$(BIN)/lint-imports --no-cache

.PHONY: types
types: install ## mypy, strict
	$(BIN)/mypy

.PHONY: format
format: install ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

# The fast layers: no cluster, no engine, no network but loopback.
FAST := tests/unit tests/golden tests/worlds tests/wire
PYTEST := $(BIN)/python -m pytest

.PHONY: check
check: lint types ## Lint, types, import contracts and the fast tests: the minute before a commit
	$(PYTEST) -q -n 2 -m "not slow" $(FAST)
	@$(MAKE) --no-print-directory verify

.PHONY: explore
explore: install ## The property tests with new examples (ROUNDS=n, 5 without)
	@for round in $$(seq $(or $(ROUNDS),5)); do $(PYTEST) -q -n 2 -m hypothesis --hypothesis-profile explore $(FAST) || exit 1; done

.PHONY: test-slow
test-slow: install ## Of the same layers, the tests that take seconds
	$(PYTEST) -q -n 2 -m slow $(FAST)

.PHONY: test-fast
test-fast: install ## Unit, golden, worlds and wire tests
	$(PYTEST) -q -n 2 $(FAST)

.PHONY: test-api
test-api: install ## Against a real etcd and API server, no nodes
	$(PYTEST) -q tests/api

.PHONY: test-runtime
test-runtime: install ## Against real vLLM engines and Ray, as processes of this machine
	$(PYTEST) -q --timeout 300 tests/runtime

.PHONY: test-cluster
test-cluster: install ## Against a real cluster of three nodes with the built images
	$(PYTEST) -q --timeout 600 tests/cluster

.PHONY: test-chaos
test-chaos: install ## Engines and gateways killed under load, a few times (all of it: make chaos)
	$(PYTEST) -q --timeout 600 tests/chaos

.PHONY: chaos
chaos: install ## Every fault of chaos/scenarios, many times (RUNS=n each), into docs/recovery.md; hours
	$(BIN)/python -m chaos run --results docs/recovery.json $(if $(RUNS),--runs $(RUNS)) $(SCENARIOS) ; status=$$? ; $(BIN)/python -m chaos table && exit $$status

.PHONY: sweep
sweep: install ## The operator cut off at every write it makes, against a real API server (QUICK=1: a sample)
	$(BIN)/python -m sweep run $(if $(QUICK),--quick) $(SCENARIOS)

.PHONY: kv-torture
kv-torture: install ## The store of KV blocks: writers killed, bits flipped, files cut, by the thousand (QUICK=1: a minute)
	$(BIN)/python -m bench kv-torture $(if $(QUICK),--quick)

.PHONY: fuzz
fuzz: install ## Every field of the CRD changed and changed back, and planted bugs that it must catch (QUICK=1: a sample; SEED=n)
	$(BIN)/python -m sweep fuzz $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED))

.PHONY: fuzz-gateway
fuzz-gateway: install ## Many random and mutated requests on the gateway's port (EXAMPLES=20000 of each kind, half an hour)
	FUZZ_EXAMPLES=$(or $(EXAMPLES),20000) $(PYTEST) -q --timeout 0 tests/wire/test_gateway_fuzz.py

.PHONY: test-gpu
test-gpu: install ## On a machine with an NVIDIA GPU and the engine image
	$(PYTEST) -q --timeout 1800 -m gpu tests/gpu

.PHONY: test
test: check test-slow test-api test-runtime test-chaos test-cluster ## Everything, the real cluster included (sets up what it needs)

.PHONY: golden-update
golden-update: install ## Write the golden files anew; read the difference before you commit it
	GOLDEN_UPDATE=1 $(PYTEST) -q tests/golden

.PHONY: generate
generate: install ## Write the files that are made from code: CRDs, chart rules, install.yaml, docs/api.md
	$(BIN)/python -m headrace_operator.generate
	$(BIN)/python -m local.chart

.PHONY: verify
verify: install ## Fails where a generated file is not what the code makes
	$(BIN)/python -m headrace_operator.generate --check
	$(BIN)/python -m local.chart --check
	$(BIN)/python -m chaos table --check

.PHONY: engine
engine: install ## The environment of the engine on CPU, in the cache (2.4 GB, half a minute)
	$(BIN)/python -m local.engine build

.PHONY: models
models: install ## Models to test with, in the cache: a small real one and a tiny one (0.3 GB, half a minute)
	$(BIN)/python -m local.engine models

.PHONY: images
images: install ## Images of operator and runtime, with Docker or buildah (what is built already is kept)
	$(BIN)/python -m local images

.PHONY: images-gpu
images-gpu: install ## Image of the GPU engine, upon vLLM's own: needs a registry and about 30 GB
	$(BIN)/python -m local images engine

.PHONY: demo
demo: install ## A cluster, the operator, a model in two roles, and a question to it
	$(BIN)/python -m local demo

.PHONY: demo-down
demo-down: install ## Remove the demo and its cluster
	$(BIN)/python -m local demo-down

.PHONY: cluster-up
cluster-up: install ## A cluster of three nodes on this machine (NODES=N); says so if it is there
	$(BIN)/python -m local up --nodes $(or $(NODES),3)

.PHONY: cluster-down
cluster-down: install ## Remove the cluster and every trace of it
	$(BIN)/python -m local down
