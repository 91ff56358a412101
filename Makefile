# Everything runs in a virtual environment of this folder; nothing is installed outside it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=
# Processes that run the tests; many tests start several themselves.
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup train test check bench clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'
	@echo "  Variables: PYTHON=$(PYTHON) VENV=$(VENV) ARGS=\"...\" (overrides for train, options for test)"

setup: $(STAMP)  ## Make the virtual environment with exactly pinned packages

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if (3, 10) <= v < (3, 14) else f"Python {v[0]}.{v[1]} will not do: 3.10 to 3.13 is needed; name one with make PYTHON=python3.12 ...")'
	@echo "setup: virtual environment in $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "setup: installing pinned packages (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "setup: done"

train: $(STAMP)  ## Set up, then pretrain a small Qwen3 on the bundled sample (ARGS="training.steps=800")
	@echo "train: molgen-pretrain $(ARGS)"
	@$(BIN)/molgen-pretrain $(ARGS)

test: $(STAMP)  ## Set up, then run the tests (ARGS="-k schedules")
	@echo "test: pytest -n $(WORKERS) --dist loadfile $(ARGS)"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(STAMP)  ## Lint, format check, types
	@echo "check: ruff check, ruff format --check, mypy"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: $(STAMP)  ## Measure, and write the tables of benchmarks/results/ (up to 40 minutes; ARGS="train_step")
	@echo "bench: python benchmarks $(ARGS)"
	@$(BIN)/python benchmarks $(ARGS)

clean:  ## Remove the environment, caches and build products; runs/ stays
	@echo "clean: $(VENV), caches, build products"
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
