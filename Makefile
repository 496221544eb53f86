# make setup      everything below .venv and .triton (done by the other targets where needed)
# make demo       the whole system on a street clip; ARGS="--video FILE --seconds 30 --cameras 4"
# make test       linters, types, proto checks, unit, wire and integration tests
# make test-long  what takes longer: faults, soak, fuzz
# make k8s-check  all about deploy/: manifests, rules, Dockerfiles, and the run of the manifests
# make clean      removes what these made
#
# PYTHON=python3.12 chooses another interpreter for .venv.

SHELL := /bin/bash
.DEFAULT_GOAL := setup
.PHONY: setup demo test test-long k8s-check lint clean

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.eyeline-ready
# A clone without the version before this one cannot try it beside this one.
BEFORE := $(shell sed -n 's/^BEFORE = "\(.*\)"/\1/p' tests/integration/test_version_skew.py)
HISTORY := $(shell git cat-file -e $(BEFORE)^{commit} 2>/dev/null || echo and not history)

setup: $(READY) .triton/VERSION

# Made last: an interrupted set-up is done again.
$(READY): pyproject.toml .ci/constraints.txt .ci/setup .ci/install-triton
	@PYTHON="$(PYTHON)" .ci/setup
	@touch $@

# Removed by hand, say.
.triton/VERSION: | $(READY)
	@.ci/install-triton

# exec, so that Ctrl-C reaches the program alone and make waits for it.
demo: setup
	@exec $(BIN)/python -m benchmarks.demo $(ARGS)

lint: setup
	@.ci/lint

test: lint
	$(BIN)/python -m pytest -n 3 --dist loadfile $(ARGS)

test-long: setup
	@$(if $(HISTORY),echo "$(BEFORE) is not in this clone: tests beside the version before are left out",:)
	$(BIN)/python -m pytest -m "long and not shared_data and not gpu $(HISTORY)" --timeout 1200 -n 2 --dist loadfile $(ARGS)

k8s-check: setup
	$(BIN)/python -m pytest -m "not shared_data and not gpu" --timeout 1200 \
		tests/k8s tests/integration/test_manifests_run.py $(ARGS)

clean:
	rm -rf .venv .triton build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
