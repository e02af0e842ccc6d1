# The whole interface of a developer: make demo · test · test-slow · oracle · clients · check · bench · bench-cache · bench-vision · bench-router · bench-gateway · bench-planner · llama.cpp · clean.
# Every target creates .venv itself and installs again only when what is installed changed (Python code is read in place).

PYTHON ?= python3
TORCH_INDEX ?=
SUITE ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TEST := $(BIN)/python -m pytest
CODE := src tests tools bench setup.py
NATIVE := $(wildcard csrc/* csrc/*/*.*)
STARTED := $(shell date +%s)

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow oracle clients check format bench bench-cache bench-vision bench-router bench-gateway bench-planner llama.cpp clean

help:
	@echo "make demo       install, then see the embedded model answer, think, call a tool and read"
	@echo "make test       install, then run the tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make oracle     install llama-cpp-python, which some of them need; builds it, which takes long"
	@echo "make clients    install other people's clients and a browser's driver, which some of them need"
	@echo "make check      what CI runs: format, lint, types, tests"
	@echo "make format     put the code into its format"
	@echo "make bench      Qwench beside the machine's limits and beside other engines, in turns"
	@echo "make bench-cache what conversations read again, beside llama.cpp's server; a long prompt among streams"
	@echo "make bench-vision how long looking at pictures takes, beside transformers and llama.cpp's mtmd"
	@echo "make bench-router the router on outcome tables that others published, fetched first"
	@echo "make bench-gateway what the gateway adds to a call, at 50 streams"
	@echo "make bench-planner whether planned speeds are what is measured"
	@echo "make llama.cpp  build the engine that make bench compares with, from PyPI's source"
	@echo "make clean      remove .venv and caches"

demo: $(VENV)/.installed
	@$(BIN)/python tools/demo.py --since $(STARTED)

test: $(VENV)/.installed-dev
	$(TEST)

test-slow: $(VENV)/.installed-dev
	$(TEST) -m slow

# Without the instruction sets of this machine: what llama.cpp is asked here is not how fast it is.
oracle: $(VENV)/.installed-dev
	CMAKE_ARGS="-DGGML_NATIVE=OFF -DLLAVA_BUILD=OFF" $(PIP) --no-binary llama-cpp-python -e '.[dev,oracle]'

# The browser itself is the system's: Debian's package is called chromium. litellm wants an older openai than the others, so it
# gets an environment of its own.
clients: $(VENV)/.installed-dev
	$(PIP) -e '.[dev,clients]'
	$(PYTHON) -m venv $(VENV)/litellm
	$(VENV)/litellm/bin/python -m pip install -qq --disable-pip-version-check litellm==1.99.4

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	@if command -v cmake >/dev/null && command -v c++ >/dev/null; then \
	  cmake -S csrc -B build/check -DQWENCH_WERROR=ON >/dev/null && cmake --build build/check --parallel $(shell getconf _NPROCESSORS_ONLN); \
	else echo "no cmake or no C++ compiler: the native library is not checked for warnings"; fi
	$(TEST)

format: $(VENV)/.installed-dev
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

bench: $(VENV)/.installed-dev
	$(BIN)/python bench/suite.py $(SUITE)

bench-cache: $(VENV)/.installed-dev
	$(BIN)/python bench/cache.py
	$(BIN)/python bench/fairness.py --shape qwen3.5:0.8b --quantization q4

# mtmd's driver reads llama.cpp's internal header, so it is built against the very sources that `make llama.cpp` built.
LLAMA := build/llama.cpp
MTMD := $(if $(wildcard $(LLAMA)/tools/mtmd/libmtmd.a),$(LLAMA)/bin/mtmd-time)
$(LLAMA)/bin/mtmd-time: bench/mtmd_time.cpp $(wildcard $(LLAMA)/tools/mtmd/libmtmd.a)
	$(CXX) -std=c++17 -O2 $(addprefix -I$(LLAMA)/source/,tools/mtmd include ggml/include common vendor) $< -o $@ \
	  $(addprefix $(LLAMA)/,tools/mtmd/libmtmd.a src/libllama.a ggml/src/libggml.a ggml/src/libggml-cpu.a ggml/src/libggml-base.a) \
	  $(wildcard $(LLAMA)/vendor/*/*.a) -fopenmp -lpthread -ldl

bench-vision: $(VENV)/.installed-dev $(MTMD)
	$(BIN)/python -m bench.vision

bench-router: $(VENV)/.installed-dev
	-$(BIN)/python -m bench.outcomes
	$(BIN)/python -m bench.router

bench-gateway: $(VENV)/.installed-dev
	$(BIN)/python -m bench.gateway

bench-planner: $(VENV)/.installed-dev
	$(BIN)/python -m bench.planner

llama.cpp:
	@PYTHON=$(PYTHON) tools/build_llama.sh

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools bench -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Qwench needs Python 3.11 or newer, and '$(PYTHON)' is not; name one: make $(or $(MAKECMDGOALS),demo) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "'$(PYTHON) -m venv' failed (see above); on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch comes first and alone, because it is the one package with several builds.
$(VENV)/.installed: pyproject.toml constraints.txt setup.py $(NATIVE) | $(BIN)/python
	@echo "Installing Qwench into $(VENV): torch first, then the rest. This takes a minute or more; nothing outside $(VENV) changes."
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need: pytest, ruff, mypy, and transformers as the oracle."
	@$(PIP) -e '.[dev]'
	@touch $@
