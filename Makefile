PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin

.PHONY: help demo test test-slow lint docs clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/:/'

# torch comes first and pinned, so that nothing else decides which build of it is installed.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --upgrade pip
	$(RUN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## the whole chain on simulated cells; ends in runs/demo/report.html
	$(RUN)/cellfluxrl demo --output_dir runs/demo

test: $(VENV)/.installed  ## the tests, without the slow ones
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m 'not slow' -n 2

test-slow: $(VENV)/.installed  ## the slow tests: training scripts as real processes
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -m slow -n 2 --dist loadfile

lint: $(VENV)/.installed  ## format, lint, the order of imports, types
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/lint-imports --no-logo --no-cache
	$(RUN)/pyright --pythonpath $(RUN)/python

$(VENV)/.docs: $(VENV)/.installed
	$(RUN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs  ## the documentation as a site, in build/site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(RUN)/python -m mkdocs build --strict --quiet

clean:  ## remove the environment and the runs
	rm -rf $(VENV) runs build
