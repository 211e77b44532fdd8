# `make demo` and `make test` need Python 3.10 or newer, git and make, and do all set-up themselves.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := hf_protosphere scripts tests
# Or each of the many processes compiles torch and transformers anew: ten seconds of every start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo hub test test-slow fuzz test-gpu study quality style clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

# Made again when setup.cfg changes; an interrupted set-up leaves no stamp and starts over.
$(VENV)/.installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python3 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	PATH="$$PATH:$(abspath $(BIN))" uv pip install --quiet --python $(BIN)/python -e '.[dev]'
	touch $@

demo: $(VENV)/.installed  ## Train, measure, save and load a classifier of digits (about a minute)
	$(BIN)/python scripts/demo.py

hub: $(VENV)/.installed  ## A Hub on this machine, to publish and load without an account
	@$(BIN)/python -m tests.hub_server --port 8765 --folder outputs/hub

test: $(VENV)/.installed  ## The default test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

test-slow: $(VENV)/.installed  ## The slow tests, which `make test` leaves out
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.installed  ## The tests that need a CUDA device
	PROTOSPHERE_TEST_GPU=1 $(BIN)/python -m pytest tests/integration/test_gpu.py

fuzz: $(VENV)/.installed  ## Damaged images and damaged runs by the thousand, with their figures (minutes)
	$(BIN)/python -m pytest -m slow -s -q tests/integration/test_mutated_images.py \
		tests/integration/test_damaged_runs.py

study: $(VENV)/.installed  ## A stage of scripts/study: make study STUDY="small_network --data ..."
	$(BIN)/python -m scripts.study $(STUDY)

quality: $(VENV)/.installed  ## Lint and check the format
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

style: $(VENV)/.installed  ## Mend what can be mended by itself
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

clean:  ## Remove the environment and everything built or trained here
	rm -rf $(VENV) build dist *.egg-info outputs .pytest_cache .ruff_cache .hypothesis
