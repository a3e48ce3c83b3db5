# `make demo` and `make test` do all the set-up on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test test-peers lint types bench-evaluate bench-train bench-explain gpu wheel clean
.DELETE_ON_ERROR:

$(VENV)/installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/bench-installed: $(VENV)/installed requirements-bench.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.lock
	touch $@

demo: $(VENV)/installed   ## tune, evaluate, explain and report on a real small model
	$(BIN)/glotlift demo --output-path runs/demo

test: $(VENV)/installed   ## the whole test suite, the demo model included; two processes, files whole, longest first
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not peers'

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/installed
	$(BIN)/basedpyright

test-peers: $(VENV)/bench-installed  ## against lm-evaluation-harness, nnsight and tuned-lens themselves
	$(BIN)/python -m pytest -m peers

bench-evaluate: $(VENV)/bench-installed  ## against the plain loop and lm-evaluation-harness; BENCH=--quick for a minute
	$(BIN)/python benchmarks/evaluate.py $(BENCH)

bench-train: $(VENV)/bench-installed  ## training against TRL; BENCH=--quick for a minute and a half
	$(BIN)/python benchmarks/train.py $(BENCH)

bench-explain: $(VENV)/bench-installed  ## lens and geometry against the plain loop and nnsight; BENCH=--quick for one item a language
	$(BIN)/python benchmarks/explain.py $(BENCH)

gpu:                     ## on a machine with a GPU: PYTHON has torch for it, see docs/gpu.md; GPU='--parts train' for some
	PYTHONPATH=src $(PYTHON) benchmarks/gpu.py $(GPU)

wheel: $(VENV)/installed
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:
	rm -rf $(VENV) dist build
