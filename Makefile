# Two commands matter: `make quickstart` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= core
BIN    := $(VENV)/bin

.PHONY: quickstart setup test lint format peers lock clean

quickstart: setup            ## train a small bilingual chat model from raw text, end to end
	$(BIN)/hllm quickstart $(if $(SCALE),--scale $(SCALE))

setup: $(VENV)/.$(EXTRAS)    ## prepare .venv (EXTRAS=cuda12|tpu|plan|dev for other requirement files)

test: $(VENV)/.dev           ## the test suite: no torch, no network beyond the package registry
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check
	$(BIN)/python -m pytest -n 2 -m "not slow and not peers"

lint: $(VENV)/.dev           ## what CI checks besides the tests
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/pyrefly check

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

peers: .venv-peers/.done     ## the published implementations, for live parity and benchmarks (Python 3.11)

lock: $(VENV)/.dev           ## resolve requirements/*.txt anew
	UV=$(BIN)/uv scripts/lock.sh

clean:
	rm -rf $(VENV) .venv-peers

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.%: requirements/%.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --require-hashes -r $<
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable .
	touch $@

# torch first, and alone: what depends on it must not choose another build.
.venv-peers/.done: requirements/peers.in
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet torch==2.13.0
	.venv-peers/bin/python -m pip install --disable-pip-version-check --quiet -r requirements/peers.in
	touch $@
