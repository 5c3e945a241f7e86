# Everything a contributor types. `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export VENV_BIN := $(abspath $(BIN))

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format stubs docs lint types proto stubs-current docs-current

help:
	@echo "make demo     the whole circle on this machine: a teacher, two students, an orchestrator, two rounds"
	@echo "make test     the test suite"
	@echo "make check    format, lint, types, contract, generated files"
	@echo "make format   write the format that 'make check' asks for"
	@echo "make stubs    regenerate tutelage/v1 from proto/"
	@echo "make docs     regenerate the tables in docs/"
	@echo "make setup    only set up $(VENV)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Creating $(VENV) with $(PYTHON)"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the packages of constraints.txt into $(VENV) (minutes the first time; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[student,teacher,dev]' \
	  >$(VENV)/install.log 2>&1 || { tail -n 40 $(VENV)/install.log; exit 1; }
	@touch $@

demo: $(STAMP)
	@$(BIN)/tutelage demo $(DEMO_ARGS)

# Most tests wait for services: two processes take turns on the cores, each a file at a time and with one thread.
TEST_WORKERS ?= 2
test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadfile $(TEST_ARGS)

check: lint types proto stubs-current docs-current
	@echo "check: all good"

lint: $(STAMP)
	@echo "check: ruff format, ruff check"
	@$(BIN)/ruff format --check --quiet . || { echo "not formatted (make format):"; $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/ruff check --quiet .

types: $(STAMP)
	@echo "check: mypy"
	@$(BIN)/mypy --no-error-summary

proto: $(STAMP)
	@echo "check: buf lint, format, breaking"
	@$(BIN)/buf lint proto
	@$(BIN)/buf format -d --exit-code proto
	@tools/check_breaking.sh

stubs-current: $(STAMP)
	@echo "check: stubs are current"
	@tools/check_stubs.sh

docs-current: $(STAMP)
	@echo "check: generated tables are current"
	@$(BIN)/python tools/generate_docs.py --check

format: $(STAMP)
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/buf format -w proto

stubs: $(STAMP)
	@tools/generate_stubs.sh

docs: $(STAMP)
	@$(BIN)/python tools/generate_docs.py
