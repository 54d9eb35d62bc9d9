# Two commands matter: `make quickstart` and `make test`. `make help` lists the others.
PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= core
BIN    := $(VENV)/bin
PIP    := -m pip install --disable-pip-version-check --no-input --quiet

# Tests spend their time in the compiler, on programs that run for a moment: LLVM does not optimise them.
# `.ci/run` has them optimised under its second Python, and so has `pytest` itself.
TEST_XLA = --xla_backend_optimization_level=0
# More arguments for pytest: `make unit TESTS=tests/nn`.
TESTS =

# torch has its wheels for this Python; the environment of the published implementations is made with it.
PEERS_PYTHON ?= $(firstword $(shell command -v python3.11) $(PYTHON))

.PHONY: quickstart setup test unit lint format peers compilers lock clean help
.DEFAULT_GOAL := help

quickstart: setup            ## train a small bilingual chat model from raw text, end to end
	$(BIN)/hllm quickstart $(if $(SCALE),--scale $(SCALE))

setup: $(VENV)/.$(EXTRAS)    ## prepare .venv (EXTRAS=cuda12|tpu|plan|dev for other requirement files)

test: lint unit              ## the test suite: no torch, no network beyond the package registry

unit: $(VENV)/.dev           ## the tests alone
	XLA_FLAGS="$$XLA_FLAGS $(TEST_XLA)" $(BIN)/python -m pytest -n 2 -m "not slow and not peers" $(TESTS)

lint: $(VENV)/.dev           ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyrefly check

format: $(VENV)/.dev
	$(BIN)/ruff format . && $(BIN)/ruff check --fix .

peers: .venv-peers/.done     ## the published implementations, for live parity and benchmarks (Python 3.11)

compilers: $(VENV)/.compilers ## the compiler for TPUs, beside what the tests need

lock: $(VENV)/.dev           ## resolve requirements/*.txt anew
	UV=$(BIN)/uv scripts/lock.sh

help:                        ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

clean:                       ## remove the environments
	rm -rf $(VENV) .venv-peers

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)

# Only libtpu of the lock of the extra `plan`: everything else is there already.
$(VENV)/.compilers: requirements/plan.txt | $(VENV)/.dev
	@sed -n '/^libtpu==/,/[^\\]$$/p' $< > $(VENV)/libtpu.txt
	@$(BIN)/python $(PIP) --require-hashes -r $(VENV)/libtpu.txt
	@touch $@

$(VENV)/.%: requirements/%.txt pyproject.toml | $(BIN)/python
	@echo "installing requirements/$*.txt into $(VENV), which takes a minute or two"
	@$(BIN)/python $(PIP) --require-hashes -r $<
	@$(BIN)/python $(PIP) --no-build-isolation --no-deps --editable .
	@touch $@

# torch first, and alone: what depends on it must not choose another build.
.venv-peers/.done: requirements/peers.in requirements/peers-newest.in
	$(PEERS_PYTHON) -m venv .venv-peers
	@echo "installing the published implementations into .venv-peers"
	@.venv-peers/bin/python $(PIP) torch==2.13.0
	@.venv-peers/bin/python $(PIP) -r requirements/peers.in
	@.venv-peers/bin/python $(PIP) --no-deps --upgrade --target .venv-peers/newest -r requirements/peers-newest.in
	@touch $@
