# Two commands: `make demo` restores a real CT slice, `make test` runs the tests. Each sets up .venv by itself.

PYTHON ?= python3
INPUT ?=
OUTPUT ?= output/demo
DOSE ?= 0.25
# A head where the demo's own slice is shown, an abdomen otherwise; full and chest are the others.
WINDOW ?= $(if $(INPUT),abdomen,head)
# For make results; docs/results/README.md says where the data come from.
DATASET_DIR ?=
ADJACENT ?=
DEVELOPMENT_DIR ?=
DEVELOPMENT_EXCLUDE ?=
MEASURED_DIR ?=
TRAINED_DIR ?=
ONLY ?=
FRESH ?=

VENV := .venv
RUN := $(VENV)/bin/python
# The last thing that venv writes: while it is missing, an interrupted set-up is made anew.
MADE := $(VENV)/bin/pip
# The stamp carries a checksum of what is installed, so a changed requirement is noticed whatever the clock says.
REQUIREMENTS := requirements.txt requirements-constraints.txt
DEV_REQUIREMENTS := $(REQUIREMENTS) requirements-dev.txt
READY := $(VENV)/ready-$(shell cat $(REQUIREMENTS) | cksum | cut -d' ' -f1)
DEV_READY := $(VENV)/ready-dev-$(shell cat $(DEV_REQUIREMENTS) | cksum | cut -d' ' -f1)
PIP := $(RUN) -m pip install --quiet --disable-pip-version-check --no-cache-dir

# Idle threads sleep: spinning ones cost a two-core machine half its speed.
export OMP_WAIT_POLICY := passive
export MPLCONFIGDIR := $(CURDIR)/$(VENV)/matplotlib
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH

.PHONY: help demo test check lint setup clean results results-quick
.DEFAULT_GOAL := help

help:
	@echo "make demo    restore a real CT slice from quarter-dose projections (INPUT=, OUTPUT=, DOSE=, WINDOW=)"
	@echo "make test    run the tests"
	@echo "make results measure everything anew, in hours (DATASET_DIR=, DEVELOPMENT_DIR=, ...; see docs/results)"
	@echo "make check   style, import rules and tests: what CI runs"
	@echo "make setup   only set up .venv for work on the project"
	@echo "make clean   remove .venv and caches"

demo: $(READY)
	input='$(INPUT)'; \
	if [ -z "$$input" ]; then \
	  input=$$($(RUN) -c "from pydicom.data import get_testdata_file as f; print(f('J2K_pixelrep_mismatch.dcm', download=False))") || exit 1; \
	fi; \
	$(RUN) -m monai.bundle run --config_file configs/inference.json --input "$$input" --output_dir '$(OUTPUT)' \
	  --dose $(DOSE) --window $(WINDOW) --overwrite True

test: $(DEV_READY)
	$(RUN) -m pytest

RESULTS = $(RUN) scripts/make_results.py $(if $(DATASET_DIR),--dataset_dir '$(DATASET_DIR)') \
  $(if $(ADJACENT),--adjacent $(ADJACENT)) $(if $(DEVELOPMENT_DIR),--development_dir '$(DEVELOPMENT_DIR)') \
  $(if $(DEVELOPMENT_EXCLUDE),--development_exclude $(DEVELOPMENT_EXCLUDE)) \
  $(if $(MEASURED_DIR),--measured_dir '$(MEASURED_DIR)') \
  $(if $(TRAINED_DIR),--trained_dir '$(TRAINED_DIR)') $(if $(ONLY),--only $(ONLY)) $(if $(FRESH),--fresh)

# The development requirements: some comparisons need them.
results: $(DEV_READY)
	$(RESULTS)

results-quick: $(DEV_READY)
	$(RESULTS) --quick

lint: $(DEV_READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/lint-imports

check: lint test

setup: $(DEV_READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): | $(MADE)
	@echo "Installing what running needs into $(VENV) (once; torch is large) ..."
	$(PIP) -r requirements.txt
	@rm -f $(VENV)/ready-[0-9]* && touch $@

$(DEV_READY): | $(MADE)
	@echo "Installing what the tests need into $(VENV) (once; torch is large) ..."
	$(PIP) -r requirements-dev.txt
	@rm -f $(VENV)/ready-* && touch $(READY) $@

$(MADE):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("Python 3.10 to 3.13 is needed, %s is %d.%d; try make PYTHON=python3.12 ..." % (sys.executable, *v))'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) -m venv failed: is the venv package of this Python installed?" >&2; exit 1; }
