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

.PHONY: demo test clean

demo: $(INSTALLED)
	$(BIN)/python examples/digits.py

# Two processes of one thread each: many small nets gain more from that than from threads.
test: $(INSTALLED)
	$(BIN)/ruff check .
	OMP_NUM_THREADS=1 TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 \
	$(BIN)/python -m pytest tests -q -n 2 --durations=10 $(PYTEST_ARGS)

$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "Expected Python 3.11 or newer, found $$($(PYTHON) --version): make PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing into $(VENV), once: about two minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --upgrade pip
	@$(BIN)/python -m pip install -qq -r requirements.txt
	@$(BIN)/python -m pip install -qq --no-deps --editable .
	@touch $@

clean:
	rm -rf $(VENV) outputs
