# Two commands for a new machine: `make demo` and `make test`. Only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit e2e services vllm clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo  ## replay conversations and code on a virtual GPU, write two reports (under 3 minutes)
	@$(BIN)/wattload demo

test: lint unit e2e  ## lint, types, unit tests and the end-to-end test with the virtual GPU

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

unit: $(VENV)/.installed-dev
	@$(BIN)/pytest -q -n auto --dist loadfile -m "not e2e and not vllm and not services"

e2e: $(VENV)/.installed-dev
	@$(BIN)/pytest -q -n 3 --dist loadfile -m "e2e and not vllm and not services"

services: $(VENV)/.installed-dev  ## dashboards on a real Prometheus, Compose, screenshots (installs Debian packages as root)
	@bash .ci/services

vllm:  ## the metered vLLM on this machine's CPU (downloads 2.5 GB into .venv-vllm)
	@bash .ci/vllm

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wattload needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/.python
	@echo "installing wattload into $(VENV) ..." && $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[load,serve]" && touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.python
	@echo "installing wattload and its development tools into $(VENV) ..." && $(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]" && touch $@ $(VENV)/.installed-demo

clean:  ## remove the virtual environments and caches
	rm -rf .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache build dist
