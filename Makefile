PYTHON ?= python3
BIN := .venv/bin
# one thread each for tests and demo: on models this small more threads only wait for one another
ONE := OMP_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench clean

help:     ## This list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

install: .venv/installed  ## Make .venv with the tested versions

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("tasft needs Python 3.11 or newer; give one with PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,tasks,launchers,search,workspaces]'
	@touch $@

demo: install  ## The paper in small: SFT, harvest, EMD and NLCL at three counts, a table and figures (minutes)
	$(ONE) $(BIN)/python -m tasft.run experiment=demo loss=sft
	$(ONE) $(BIN)/python -m tasft.harvest experiment=demo
	$(ONE) $(BIN)/python -m tasft.run -m experiment=demo loss=emd,nlcl data.toxic=50,15,5
	$(BIN)/python -m tasft.report outputs/demo

test: install  ## Every test that needs neither GPU nor network
	$(ONE) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install  ## Lint, format, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install  ## Speed and memory as ratios in one run; with a GPU, a Llama-7B shape
	$(ONE) $(BIN)/python -m bench

clean:    ## Remove .venv and caches; outputs and harvests stay
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
