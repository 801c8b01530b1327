# Two commands matter: `make serve` and `make test`. Both prepare everything they need.
PYTHON ?= python3
MODEL ?= tiny
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
BIN := .venv/bin
# One thread per test process, and never the network: see docs/architecture.md, "Tests".
QUIET := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.PHONY: help serve test test-slow setup native check format bench bench-setup docs dist e2e test-ray clean

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

serve:  ## Serve the bundled model (MODEL=path, HOST, PORT, ARGS="--quant int4") and print the URL of the chat page
	@$(PYTHON) scripts/setup.py --torch optional
	@$(BIN)/statepool serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

test: setup  ## Run the test suite (ARGS="-k name")
	@$(QUIET) $(BIN)/python -m pytest tests -m "not slow" -n 2 --dist loadscope $(ARGS)

test-slow: setup  ## The cases that take minutes: every schema, every crowd, emulated instruction sets
	@$(QUIET) $(BIN)/python -m pytest tests -m slow $(ARGS)

setup:  ## Make .venv with all packages, the right torch and the native kernels
	@$(PYTHON) scripts/setup.py

native:  ## Compile the native kernels again after an edit
	@$(PYTHON) scripts/setup.py --native-only

check: setup  ## Format, lint, types, floors, size budget, module map
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/budget.py
	@$(BIN)/python scripts/module_map.py --check

format: setup  ## Format, apply safe fixes, renew the map of modules
	@$(BIN)/ruff check --fix --exit-zero .
	@$(BIN)/ruff format .
	@$(BIN)/python scripts/module_map.py

bench: setup  ## Compare with peers and write docs/benchmarks.md (ARGS="engine")
	@$(BIN)/python -m bench $(ARGS)

bench-setup: setup  ## Install the engines that benchmarks compare with, each in a venv of its own (ARGS="openvino vllm")
	@$(BIN)/python -m bench.peers.setup $(ARGS)

docs: setup  ## Build the documentation as a site in build/docs; a warning is an error
	@$(PYTHON) scripts/setup.py --extra docs
	@$(BIN)/sphinx-build -W -q -b html docs build/docs && echo build/docs/index.html

dist: setup  ## Build sdist and wheels (3.11; 3.12 and later) into dist/, on Linux with the manylinux tag they earn
	@$(PYTHON) scripts/setup.py --extra dist
	@PATH="$(BIN):$$PATH" $(BIN)/python scripts/dist.py

e2e: setup  ## Whole journeys: real server, outside clients, a browser
	@$(PYTHON) scripts/setup.py --extra e2e
	@sh scripts/browser.sh
	@$(QUIET) $(BIN)/python -m pytest tests/e2e $(ARGS)

test-ray: setup  ## Processes placed by Ray, on two nodes and on three hosts made here (as root)
	@$(PYTHON) scripts/setup.py --extra ray
	@$(QUIET) $(BIN)/python -m pytest tests/cluster tests/e2e/test_ray.py tests/e2e/test_hosts.py $(ARGS)

clean:  ## Remove builds and caches, keep .venv
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@rm -f src/statepool/native/*.so
	@find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
