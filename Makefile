# Each target sets up .venv by itself; nothing else is needed than Python >= 3.11 and a C++ compiler.
#   make run     a real model compressed, served behind the OpenAI API, and answering
#   make test    the tests, with coverage          make lint      style, types, layers
#   make bench   speed against this machine        make sanitize  the kernels under address and undefined-behaviour checks
#   make oracle  compare with torch and transformers, in an environment of their own
#   make clean   back to a fresh clone (fetched models stay: see `freehold list`, `freehold rm`)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

STARTED := $(shell date +%s)
PYTHON ?= python3
BIN := .venv/bin
STAMPS := .venv/stamps
PIP = $(BIN)/python -m pip --disable-pip-version-check install -qq
SOURCES := $(wildcard CMakeLists.txt src/freehold/kernels/csrc/*)
export PIP_PROGRESS_BAR := off

.PHONY: help install run test lint format bench reference sanitize oracle clean

help:
	@sed -n 's/^#  *//p' Makefile

install: $(STAMPS)/product

$(STAMPS)/venv:
	@tools/needs.sh $(PYTHON)
	@echo "== .venv: making the environment"
	@$(PYTHON) -m venv .venv
	@$(PIP) --upgrade 'pip>=25.1'
	@mkdir -p $(STAMPS) && touch $@

# cmake and ninja come as wheels, so the machine needs neither; without build isolation a changed kernel rebuilds alone.
$(STAMPS)/product: $(STAMPS)/venv pyproject.toml $(SOURCES)
	@echo "== build: compiling the kernels and installing freehold into .venv"
	@$(PIP) 'scikit-build-core>=0.11' 'nanobind>=2.4' cmake ninja
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) --no-build-isolation --editable .
	@touch $@

$(STAMPS)/dev: $(STAMPS)/product
	@echo "== .venv: adding what the checks need"
	@$(PIP) --group dev
	@touch $@

run: $(STAMPS)/product
	@FREEHOLD_STARTED=$(STARTED) $(BIN)/python tools/first_run.py

# PYTEST_ARGS narrows a run: make test PYTEST_ARGS="tests/cli -k help"
test: $(STAMPS)/dev
	@tools/test_needs.sh
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -m "not oracle" --cov --cov-report=term-missing:skip-covered $(PYTEST_ARGS)

lint: $(STAMPS)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(STAMPS)/dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMPS)/product
	@$(BIN)/freehold bench

reference: $(STAMPS)/product
	@$(BIN)/python -m freehold.cli.reference docs/reference.md

sanitize: $(STAMPS)/dev
	@tools/sanitize.sh

# torch is large: to take its CPU build, let pip know where it lies (pip.conf or PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS).
# The product and the test tools are .venv's: it is put behind the oracle's own packages.
.venv-oracle/stamp: $(STAMPS)/dev bench/requirements-oracle.txt
	@echo "== .venv-oracle: torch and transformers, to compare with"
	@$(PYTHON) -m venv .venv-oracle
	@.venv-oracle/bin/python -m pip --disable-pip-version-check install -qq --requirement bench/requirements-oracle.txt
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	    >"$$(.venv-oracle/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/product.pth"
	@touch $@

oracle: .venv-oracle/stamp
	@.venv-oracle/bin/python -m pytest -m oracle tests/oracle $(PYTEST_ARGS)

clean:
	rm -rf .venv .venv-oracle build dist .coverage .coverage.* htmlcov .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find src tests bench tools -name __pycache__ -type d -prune -exec rm -rf {} +
	find src -name '*.so' -delete
