# Every target makes what it needs: the environment, the extension, then its own job. `make help` lists them.
#   PYTHON  the interpreter that creates the environment
#   VENV    the environment; may be one that exists, whose torch (2.11 to 2.14) is then kept
#   TORCH   which torch goes into a new environment, e.g. TORCH=torch==2.14.1 (default: requirements.txt)
#   ARGS    extra arguments of pytest, demo or bench, e.g. make test ARGS='-k relu'
PYTHON ?= python3
VENV ?= .venv
TORCH ?=
ARGS ?=
export CMAKE_ARGS ?=
MAX_JOBS ?= $(shell nproc 2>/dev/null || echo 2)
export MAX_JOBS

bin := $(abspath $(VENV))/bin
python := $(bin)/python
export PATH := $(bin):$(PATH)
cxx_files = $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'tests/cpp/*' 'tests/cuda_emulator/*.h' \
  'tests/cuda_emulator/*.cpp' 'tests/cuda_emulator/*.cuh' | grep -v csrc/cpu/simd/vec.h)

.DEFAULT_GOAL := build
.PHONY: help env build demo test test-cpp test-emulated lint format bench gpu sanitize wheel clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

env: ## the virtual environment with everything pinned in requirements.txt
	@command -v $(PYTHON) >/dev/null || { echo "fastnn: no $(PYTHON): install Python 3.10 or newer, or name one, e.g. make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) scripts/environment.py $(VENV) $(if $(TORCH),--torch '$(TORCH)')

build: env ## fastnn, in place and importable from the environment
	@$(python) setup.py --quiet build_ext --inplace
	@$(MAKE) --no-print-directory $(VENV)/.fastnn-editable

$(VENV)/.fastnn-editable: pyproject.toml setup.py
	@$(python) -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: build ## what fastnn does, in a few minutes
	$(python) -m fastnn demo $(ARGS)

bench: build ## fastnn beside torch.nn, layer by layer
	$(python) -m fastnn bench $(ARGS)

test: build test-cpp ## all tests: the kernels alone, then the package
	$(python) -m pytest $(ARGS)

test-cpp: env ## the kernels alone: C++ tests without torch
	@cmake --preset kernels >/dev/null
	@cmake --build --preset kernels -j $(MAX_JOBS)
	@ctest --preset kernels

emulated_tests = $(wildcard $(patsubst csrc/ops/cuda/%.cpp,tests/test_%.py,$(wildcard csrc/ops/cuda/*.cpp)))
torch_build = build/torch-$(shell $(python) -c 'import sys; from importlib.metadata import version; print(version("torch") + "-" + sys.implementation.cache_tag)')

test-emulated: build ## the tests of ops with CUDA kernels, which an emulator runs on the CPU
	@cmake --build $(torch_build) --target fastnn_emulated -j $(MAX_JOBS)
	FASTNN_EMULATED=$(torch_build)/libfastnn_emulated.so $(python) -m pytest tests/test_emulated.py $(emulated_tests) $(ARGS)

sanitize: env ## the C++ tests under the address and undefined-behaviour sanitizers
	@cmake --preset sanitize >/dev/null
	@cmake --build --preset sanitize -j $(MAX_JOBS)
	@ctest --preset sanitize -j $(MAX_JOBS)

lint: build ## formatters, linters, types, layout, symbols, the inner loop of the matrix product
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(cxx_files)
	mypy
	$(python) scripts/check_layout.py
	$(python) scripts/check_symbols.py
	$(python) scripts/gemm_instructions.py --check

format: env ## rewrites the sources as `make lint` wants them
	ruff check --fix --quiet .
	ruff format .
	clang-format -i $(cxx_files)

gpu: env ## on a GPU machine: checks and timings of the CUDA kernels in 9 minutes, ARGS='--minutes 5'; builds what it needs
	$(python) scripts/gpu.py $(ARGS)

wheel: env ## dist/: source archive and binary wheel for this Python and this torch
	@rm -rf build/lib* build/bdist* dist
	$(python) -m build --no-isolation --sdist --wheel

clean: ## removes what was built; the environment stays
	rm -rf build dist *.egg-info fastnn/_build_info.py fastnn/*.so $(VENV)/.fastnn-editable
