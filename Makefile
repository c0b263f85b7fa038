# make chat PROMPT="..."   answer a question (without PROMPT: an interactive chat)
# make test                everything the tests need, then the tests
# make lint                formatting, lints, types
# make bench               the default model's speed on this machine
# make compare             the same beside other engines; ARGS="--set issue --engine llama.cpp=PYTHON", see benchmarks/README.md
# make clean               forget the environment and the build

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
NATIVE := pyproject.toml $(wildcard native/*.* native/simd/*)

.PHONY: chat test lint bench compare clean

chat: $(VENV)/installed
	@$(BIN)/minicpm4 chat $(if $(PROMPT),-p "$(PROMPT)") $(ARGS)

bench: $(VENV)/installed
	@$(BIN)/minicpm4 bench $(ARGS)

compare: $(VENV)/tested
	$(BIN)/python -m benchmarks.compare $(ARGS)

test: $(VENV)/tested
	$(BIN)/minicpm4 pull default
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || { echo "needs Python 3.11 or newer with venv (on Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/installed: $(NATIVE) | $(VENV)/bin/pip
	@echo "building the native kernels (a minute or two, once)" >&2
	$(PIP) install -e .
	@touch $@

$(VENV)/tested: $(VENV)/installed
	$(PIP) install -e '.[test]'
	@touch $@

$(VENV)/linted: $(VENV)/tested
	$(PIP) install -e '.[lint]'
	@touch $@
