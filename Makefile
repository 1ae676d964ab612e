# make demo   creates .venv, installs, prunes two networks on bundled data and writes two reports
# make test   the whole default suite, in the same .venv
# make test-ray   scans on local Ray clusters, one of which loses a node
# make test-zoo   the law of surgery on every network of the zoo, one plan each (half an hour on two cores)
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin
export PIP_CONSTRAINT := $(abspath constraints.txt)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
STAMP := $(VENV)/.stamp

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_ARGS) torch
	$(BIN)/pip install -q $(PIP_ARGS) -e ".[test]"
	touch $@

demo: $(STAMP)
	$(BIN)/secateur demo --out runs/demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: $(STAMP)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest -q -m slow

# Ray clusters on this machine, reached over its loopback device only; a node is killed in the middle of a scan.
test-ray: $(STAMP)
	$(BIN)/pip install -q $(PIP_ARGS) -e ".[ray]"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m ray tests/sensitivity/test_ray.py

# Every network of the zoo is held to the law of surgery; docs/SUPPORTED.md says what came of it.
test-zoo: $(STAMP)
	rm -f zoo.jsonl
	$(BIN)/python tests/zoo/run.py --quick --jobs 2 --limit_s 300 --out zoo.jsonl --table docs/SUPPORTED.md

# Several plans each, renormalised groups, cut graphs, copies, compilation and export too: hours.
test-zoo-full: $(STAMP)
	$(BIN)/python tests/zoo/run.py --jobs 2 --limit_s 600 --out zoo-full.jsonl

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: demo test test-slow test-ray test-zoo test-zoo-full lint
