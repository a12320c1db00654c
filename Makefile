# Everything a newcomer needs: `make demo` and `make test`. Both install on first use, into .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
STAMP := $(VENV)/.installed

.PHONY: install demo test lint unit test-matrix test-chaos test-cluster page bench bench-grid bench-data bench-step bench-maps bench-scaling ui clean

install: $(STAMP)

# Made anew only when the pins or the package's requirements change.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e ".[all,dev]"
	touch $(STAMP)

demo: install
	$(BIN)/python -m experiments.quickstart --seed $(SEED)

# Side by side: tests wait much of their time, for processes that they start.
test: install
	$(MAKE) -j2 lint unit

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# The tests of a file share what they set up, so a process takes whole files, long ones first.
unit: install
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

# Every kind of model under every combination of strategy, precision and options; some minutes.
test-matrix: install
	$(BIN)/python -m pytest tests/matrix.py

# Workers, nodes and drivers that are lost while a trial trains; a quarter of an hour.
test-chaos: install
	$(BIN)/python -m pytest tests/chaos_ray.py

# Clusters of their own: nodes that come, go and are killed, Slurm's script, nodes without a shared disk; some minutes.
test-cluster: install
	$(BIN)/python -m pytest -m slow

# docs/your_own_screen.md, command by command; needs the real data sets, see docs/run_page.py.
page: install
	$(BIN)/python docs/run_page.py docs/your_own_screen.md

bench: install
	$(BIN)/python -m benchmarks.synth
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.chaos
	$(BIN)/python -m benchmarks.embed

# The grid itself: order, 200 short trials and what each costs, many drivers on one MLflow store.
bench-grid: install
	$(BIN)/python -m benchmarks.scheduling
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.many_trials
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.overhead --fixed
	$(BIN)/python -m benchmarks.mlflow_writers

# Recall of a genome beside EFAAR_benchmarking, of which the files alone are installed; a million wells.
bench-maps: install
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q --no-deps efaar-benchmarking==1.0
	$(BIN)/python -m benchmarks.recall
	$(BIN)/python -m benchmarks.align

# Intervals of planted laws, the speed of their bootstrap, and what to run next; half an hour of a core.
bench-scaling: install
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.coverage --markdown
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.parametric
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.plan

# Indexes, packed stores and crops, beside those of our peers, which are installed for it.
bench-data: install
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e ".[all,dev,bench]"
	$(BIN)/python -m benchmarks.index
	$(BIN)/python -m benchmarks.formats
	$(BIN)/python -m benchmarks.data

# A training step, beside those of our peers.
bench-step: install
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e ".[all,dev,bench]"
	$(BIN)/python -m benchmarks.step

ui: install
	$(BIN)/phenoscale ui runs/quickstart-seed$(SEED)

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
