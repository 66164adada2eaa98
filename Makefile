# make export   install, and run the main job on the embedded demo
# make test     install, lint, type-check, run the tests
#
# Everything lives in .venv. A finished step leaves a stamp file there, so that the next `make`
# goes straight to work; a change of pyproject.toml installs again.

PYTHON ?= python3
VENV   ?= .venv

# The plain `torch` of PyPI brings gigabytes of CUDA packages. Where pip finds the CPU build of
# this version (find-links, or another index), it prefers it. Another version or another Python:
#     make test TORCH="torch torchvision"
TORCH ?= torch==2.13.0 torchvision==0.28.0

# The tests run in this many processes, with one torch thread each.
JOBS ?= 2
PYTEST_ARGS ?=
# Further words for `regcache-export`, for example ARGS="--limit 200".
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# What is imported is compiled then and kept, provided that Python may write.
INSTALL := $(BIN)/python .ci/install.py
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help cpp docs fuzz fuzz-python faults soak export test test-clean test-edge test-package test-examples test-scale test-encoders test-tensorrt lint types pytest bench format clean

help:
	@echo "make export   install and run regcache-export --baseline repqvit on the embedded demo"
	@echo "make test     install, lint, type-check, run the tests"
	@echo "make lint     ruff: rules and format; import-linter: the staircase of rooms"
	@echo "make types    mypy"
	@echo "make pytest   tests alone; PYTEST_ARGS='-k name'"
	@echo "make test-encoders   every architecture of open_clip and timm's ViTs, in FP32; an hour"
	@echo "make test-clean      commands and library in an environment without torch and onnx"
	@echo "make test-package    wheel and sdist, built, installed and run in a fresh environment"
	@echo "make test-examples   programs of examples/, a web service and a browser page among them"
	@echo "make test-scale      searches in several processes through Ray, one of them killed"
	@echo "make test-tensorrt   TensorRT-RTX builds of every shape and form in full depth; four minutes"
	@echo "make docs     the documentation as a site, every link checked: build/site/index.html"
	@echo "make cpp      build the C++ runtime: build/cpp/regcache_classify, libregcache.so"
	@echo "make fuzz     its fuzzer for ten minutes; FUZZ_SECONDS=60"
	@echo "make fuzz-python   every Python parser of outside files; FUZZ_SECONDS=60 each"
	@echo "make faults   injects every fault of the catalogue, and prints the score; FAULT_KILLS=200"
	@echo "make test-edge     ARM64 and a CPU without VNNI, under qemu"
	@echo "make soak     an engine opened and closed 1,000 times; memory must not grow"
	@echo "make bench    our files beside other tools, into benchmarks/results; 15 minutes, 2 cores"
	@echo "make format   let ruff rewrite the code"
	@echo "make clean    remove .venv and caches; runs/ stays"

export: $(VENV)/.stamp-run
	$(BIN)/regcache-export --baseline repqvit $(ARGS)

test: lint types pytest

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.stamp-dev
	$(BIN)/mypy

pytest: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

# One process: the towers are large, and the score is printed from all of them.
test-encoders: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -q -m "survey or not survey" tests/encoders/test_encoders_all.py

# A virtual environment of its own with what `pip install '.[cpu]'` brings; needs a package index.
test-clean: $(VENV)/.stamp-dev
	REGCACHE_CLEAN_INSTALL=1 $(BIN)/python -m pytest -q tests/engines/test_clean_install.py

test-package: $(VENV)/.stamp-dev
	$(INSTALL) build
	REGCACHE_TEST_PACKAGE=1 $(BIN)/python -m pytest -q tests/test_package.py

# The examples that need a web framework, npm's registry or a browser; what is missing is named.
test-examples: $(VENV)/.stamp-dev
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu,dev,examples]'
	REGCACHE_TEST_EXAMPLES=1 $(BIN)/python -m pytest -q tests/examples

test-scale: $(VENV)/.stamp-dev
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu,dev,scale]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/run/test_ray_team.py tests/run/test_ray_cluster.py tests/cli/test_workers_option.py

# Needs no GPU. A product that is not of the kind that the static check promises ends it.
test-tensorrt: $(VENV)/.stamp-dev
	$(BIN)/python benchmarks/tensorrt_layers.py

# What is missing is named; ONNX Runtime's headers and the like are fetched where apt can.
cpp: $(VENV)/.stamp-run
	$(BIN)/python engines/cpp/build.py

# The site needs none of torch: the API pages are read from the sources.
docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

FUZZ_SECONDS ?= 600
fuzz: $(VENV)/.stamp-run
	$(BIN)/python engines/cpp/build.py --fuzzer
	$(BIN)/python engines/cpp/fuzz/seeds.py build/cpp-fuzz/corpus
	build/cpp-fuzz/regcache_fuzz build/cpp-fuzz/corpus -max_total_time=$(FUZZ_SECONDS) \
	  -max_len=8192 -timeout=25 -rss_limit_mb=4096 -print_final_stats=1 \
	  -artifact_prefix=build/cpp-fuzz/

# Words choose faults by name: make faults FAULTS="weights/ processes/kill". Some need root (mount).
FAULTS ?=
faults: $(VENV)/.stamp-dev
	PYTHONPATH=.:export:engines OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks $(FAULTS)

soak: $(VENV)/.stamp-dev
	PYTHONPATH=.:export:engines OMP_NUM_THREADS=1 $(BIN)/python -m tests.attacks.soak

# Debian's g++-aarch64-linux-gnu and qemu-user; the rest is downloaded into build/edge.
test-edge: $(VENV)/.stamp-dev
	$(BIN)/python engines/cpp/edge.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/cpp/test_edge.py tests/cpp/test_cpu_options.py

fuzz-python: $(VENV)/.stamp-dev
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu,dev,fuzz]'
	PYTHONPATH=.:export:engines $(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

# ModelOpt needs an environment of its own; name its Python to have it in the table.
MODELOPT_PYTHON ?= $(BIN)/python
BENCH_ARGS ?=
PEERS := $(BIN)/python benchmarks/peers.py --modelopt-python $(MODELOPT_PYTHON) $(BENCH_ARGS)
# The demo takes milliseconds: at two threads its figures would be those of the scheduler.
bench: $(VENV)/.stamp-peers
	$(PEERS) --model demo --threads 1 --seconds 20
	$(PEERS) --model ViT-B-16 --pretrained random:0 --baseline naive \
	  --calibration-images 16 --images 16 --seconds 90
	$(BIN)/python benchmarks/peer_table.py benchmarks/results/peers-*.csv \
	  --output benchmarks/results/peers.md
	$(BIN)/python benchmarks/peer_readme.py benchmarks/results/peers-demo-*.csv \
	  benchmarks/results/peers-vit-b-16-*.csv --readme README.md

format: $(VENV)/.stamp-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.stamp-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or newer is needed: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.stamp-torch: | $(VENV)/.stamp-venv
	$(INSTALL) $(TORCH)
	@$(PIP) list --format=freeze | grep -E '^torch(vision)?==' > $(VENV)/constraints.txt
	@touch $@

# The constraint keeps pip from replacing the torch that is there.
$(VENV)/.stamp-run: pyproject.toml | $(VENV)/.stamp-torch
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu]'
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml | $(VENV)/.stamp-run
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu,dev,rtx]'
	@touch $@

$(VENV)/.stamp-peers: pyproject.toml | $(VENV)/.stamp-run
	$(INSTALL) --constraint $(VENV)/constraints.txt --editable '.[search,cpu,peers]'
	@touch $@

$(VENV)/.stamp-docs: pyproject.toml | $(VENV)/.stamp-venv
	$(INSTALL) 'mkdocs>=1.6,<2' 'mkdocs-material>=9.5' 'mkdocstrings[python]>=0.27' ruff
	@touch $@
