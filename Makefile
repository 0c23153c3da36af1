# `make demo` and `make test` need python3, g++ and make; they work in .venv and build, and touch nothing else but pip's
# cache of downloads. NSA_KERNEL_CUDA and CUDAARCHS say what is built (packaging/install.sh).

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := PYTHONPYCACHEPREFIX="$(CURDIR)/build/pycache" $(BIN)/python -m pytest
PARALLEL := --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
STEP := @packaging/step.sh

PACKAGE := $(shell find CMakeLists.txt pyproject.toml packaging cpp cuda python -type f -not -name '*.pyc')
CPP := $(shell find benchmarks cpp cuda tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test api lint lint-cpp lint-python lint-types lint-workflows format gpu-check wheels asan fuzz clean FORCE

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

# ---- use and test ----------------------------------------------------------------------------------------------------

demo: $(VENV)/.package ## build, and run the main job on a small batch: a minute, the first time
	@$(BIN)/python -m nsa_kernel demo

test: $(VENV)/.package $(VENV)/.test build/prefix ## build, and run the tests
	NSA_KERNEL_PREFIX="$(CURDIR)/build/prefix" $(PYTEST) $(PARALLEL)

fuzz: $(VENV)/.package $(VENV)/.test ## the fuzz tests, for as long as FUZZ_EXAMPLES says
	HYPOTHESIS_PROFILE=fuzz $(PYTEST) tests/test_fuzz.py

asan: $(VENV)/.build $(VENV)/.test ## the tests on the CPU under the address and undefined-behaviour sanitizers
	packaging/asan.sh

gpu-check: ## on a machine with CUDA, torch and pytest: tests, compute-sanitizer, timings; needs no network
	packaging/gpu_check.sh $(PYTHON)

# ---- check the sources -----------------------------------------------------------------------------------------------

lint: lint-cpp lint-python lint-types lint-workflows ## formatters, linters, types and workflows

lint-cpp: $(VENV)/.lint
	$(BIN)/clang-format --dry-run --Werror $(CPP)

lint-python: $(VENV)/.lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint-types: $(VENV)/.lint $(VENV)/.test $(VENV)/.package
	$(BIN)/mypy -p nsa_kernel

lint-workflows: $(VENV)/.workflows
	packaging/check_workflows.sh $(BIN)

api: $(VENV)/.package $(VENV)/.test ## docs/api.md, from the docstrings
	$(BIN)/python docs/make_api.py

format: $(VENV)/.lint ## let the formatters write
	$(BIN)/clang-format -i $(CPP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# ---- release ---------------------------------------------------------------------------------------------------------

.PHONY: freethreaded arm

wheels: ## build, repair and test the wheels of CUDA 12 and 13 for this machine, and the pure package: an hour
	packaging/wheels.sh

freethreaded: ## build a Python without the GIL, run the tests in it, and stress it under ThreadSanitizer: an hour
	packaging/freethreaded.sh

arm: ## build the aarch64 wheel and run it under emulation: an hour
	packaging/cross_aarch64.sh
	packaging/emulate_aarch64.sh

clean: ## remove what make made
	rm -rf $(VENV) build dist wheelhouse

# ---- the library without Python --------------------------------------------------------------------------------------

build/prefix: $(PACKAGE) | $(VENV)/.build
	$(STEP) "the C++ library, for the CPU alone" sh -ec '$(BIN)/cmake -S . -B build/cmake -DNSA_KERNEL_CUDA=OFF; \
	  $(BIN)/cmake --build build/cmake --parallel; $(BIN)/cmake --install build/cmake --prefix $@'
	@touch $@

# ---- the environment -------------------------------------------------------------------------------------------------

$(VENV)/.python:
	$(STEP) "a virtual environment in $(VENV)" packaging/make_venv.sh $(PYTHON) $(VENV)
	@touch $@

$(VENV)/.package: $(VENV)/.build build/asked $(PACKAGE)
	$(STEP) "the package: half a minute for the CPU alone, some minutes with CUDA, later only what changed" \
	  packaging/install.sh $(BIN)/python
	@touch $@

$(VENV)/.build $(VENV)/.test $(VENV)/.lint $(VENV)/.workflows: $(VENV)/.%: $(VENV)/.python pyproject.toml
	$(STEP) 'from the package index: $(shell sed -n "s/^$* = //p" pyproject.toml)' \
	  $(BIN)/python -m pip --quiet install --group $*
	@touch $@

# What the last build was asked for; newer than the package where this one is asked for something else.
build/asked: FORCE
	@mkdir -p build
	@[ "$$(cat $@ 2>/dev/null)" = "$(NSA_KERNEL_CUDA) $(CUDAARCHS)" ] || echo "$(NSA_KERNEL_CUDA) $(CUDAARCHS)" > $@
