# make chat PROMPT="..."   answer a question (without PROMPT: an interactive chat)
# make test                everything the tests need, then the tests
# make test-whole          differential tests at full size, against transformers and llama.cpp (built from its package, some minutes)
# make test-mindspore      the MindSpore executor, in an environment of its own (2 GB; MINDSPORE=2.7.0 for another version)
# make lint                formatting, lints, types
# make bench               the default model's speed on this machine
# make compare             the same beside other engines; ARGS="--set issue --engine llama.cpp=PYTHON", see benchmarks/README.md
# make clean               forget the environment and the build

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
INSTALL := install --no-compile  # most of torch is never imported: Python compiles what is, once
MINDSPORE ?= 2.10.0
MINDSPORE_VENV := .venv-mindspore-$(MINDSPORE)
NATIVE := pyproject.toml $(wildcard native/*.* native/simd/*)

LLAMA_CPP := llama-cpp-python==0.3.36
PORTABLE := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF  # AMX code by GCC 12 crashes in it

.PHONY: chat test test-whole test-mindspore lint bench compare clean

chat: $(VENV)/installed
	@$(BIN)/minicpm4 chat $(if $(PROMPT),-p "$(PROMPT)") $(ARGS)

bench: $(VENV)/installed
	@$(BIN)/minicpm4 bench $(ARGS)

compare: $(VENV)/tested
	$(BIN)/python -m benchmarks.compare $(ARGS)

test: $(VENV)/tested
	$(BIN)/minicpm4 pull default
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

test-whole: $(VENV)/peers
	$(BIN)/minicpm4 pull default
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m whole $(ARGS)

test-mindspore: $(MINDSPORE_VENV)/tested
	$(MINDSPORE_VENV)/bin/minicpm4 pull default
	$(MINDSPORE_VENV)/bin/python -m pytest --mindspore -m "mindspore and not slow" $(ARGS)

lint: $(VENV)/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-mindspore-* build

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV) || { echo "needs Python 3.11 or newer with venv (on Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/installed: $(NATIVE) | $(VENV)/bin/pip
	@echo "building the native kernels (a minute or two, once)" >&2
	$(PIP) $(INSTALL) -e .
	@touch $@

# One install, and the linters with it: each would build the bindings again.
$(VENV)/tested: $(NATIVE) | $(VENV)/bin/pip
	@echo "building the native kernels (a minute or two, once)" >&2
	$(PIP) $(INSTALL) -e '.[test,lint]'
	@touch $(VENV)/installed $@

$(VENV)/peers: $(VENV)/tested
	@echo "building llama.cpp, to compare with (some minutes, once)" >&2
	CMAKE_ARGS="$(PORTABLE)" $(PIP) $(INSTALL) '$(LLAMA_CPP)'
	@touch $@

$(MINDSPORE_VENV)/tested: $(NATIVE)
	@echo "building the native kernels and installing MindSpore $(MINDSPORE) (800 MB, once)" >&2
	$(PYTHON) -m venv $(MINDSPORE_VENV)
	$(MINDSPORE_VENV)/bin/pip --disable-pip-version-check --quiet $(INSTALL) -e '.[test,mindspore]' 'mindspore==$(MINDSPORE)'
	@touch $@
