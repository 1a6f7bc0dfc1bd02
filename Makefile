PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

# Prepared data sets and reference nets, where a folder beside this one holds them.
ifneq ($(wildcard ../shared/datasets),)
TFDS_DATA_DIR ?= $(abspath ../shared/datasets)
export TFDS_DATA_DIR
endif
ifneq ($(wildcard ../shared/anchors),)
LC_KERAS_ANCHORS ?= $(abspath ../shared/anchors)
export LC_KERAS_ANCHORS
endif

export KERAS_BACKEND := tensorflow
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONUNBUFFERED := 1

.PHONY: demo test docs dist lock versions clean

demo: $(INSTALLED)
	$(BIN)/python -m examples.digits

# Processes of one thread each: many small nets gain more from that than from threads.
test: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
	$(BIN)/python -m pytest tests -q -n 3 --dist worksteal --durations=10 $(PYTEST_ARGS)

# The site of docs/, in site/; `make docs NOTEBOOKS=false` runs no notebook.
NOTEBOOKS ?= true
docs: $(INSTALLED)
	NOTEBOOKS=$(NOTEBOOKS) NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A wheel and a source archive in dist/, checked; the wheel is installed by itself and run.
dist: $(INSTALLED)
	rm -rf dist build .dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv .dist
	.dist/bin/python -m pip install -qq --no-deps dist/*.whl
	cd .dist && PYTHONPATH=$$($(abspath $(BIN))/python -c 'import keras, pathlib; print(pathlib.Path(keras.__file__).parents[1])') \
	bin/lc-keras --help
	rm -rf .dist build

# The tests again, with the oldest and the newest Python, Keras and TensorFlow that are supported.
versions:
	tests/versions.sh $(PYTEST_ARGS)

# Pins all that requirements.txt needs, with hashes, for each Python and system; LOCK_ARGS=--upgrade renews it.
lock:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq uv==0.13.9
	$(BIN)/uv pip compile requirements.txt --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --quiet --output-file requirements.lock $(LOCK_ARGS)

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Expected Python 3.11 or newer, found $$($(PYTHON) --version): make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV), once: about two minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install -qq --no-deps --no-build-isolation --editable .
	@touch $@

clean:
	rm -rf $(VENV) .versions .dist outputs site dist build
