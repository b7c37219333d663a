# Two commands for a new machine: `make demo` and `make test`. Only Python 3.11+ and make are assumed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Newest versions that the ranges allow, by pip; `make LOCKED=1 ...` takes those of uv.lock, by uv.
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit e2e services vllm docs wheel clean fuzz audit mutation

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

demo: $(VENV)/.installed-demo  ## replay conversations and code on a simulated GPU, write two reports (under 3 minutes)
	@$(BIN)/wattload demo

test: lint unit e2e  ## lint, types, unit tests and the end-to-end test with the simulated GPU

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

fuzz: $(VENV)/.installed-dev  ## damaged inputs for every parser, for FUZZ_SECONDS=60
	@PYTHONPATH=tests/support $(BIN)/python tests/support/fuzz.py --seconds $(or $(FUZZ_SECONDS),60)

mutation: $(VENV)/.installed-dev  ## small changes of wattmeter's core that its tests notice (MUTATION="--only split --sample 0")
	@$(BIN)/python benchmarks/mutation/score.py $(MUTATION)

audit:  ## known weaknesses of the dependencies
	@bash .ci/audit

docs: $(VENV)/.installed-docs  ## the documentation as a site in site/, every link checked
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(VENV)/.python  ## the wheel and the source archive in dist/
	@$(PIP) build && $(BIN)/python -m build -q

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "wattload needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) && touch $@

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/.python
	@echo "installing wattload into $(VENV) ..." && $(PIP) -e ".[load,serve]" && touch $@

$(VENV)/.installed-dev: pyproject.toml $(if $(LOCKED),uv.lock) | $(VENV)/.python
	@echo "installing wattload and its development tools into $(VENV) ..."
ifdef LOCKED
	@UV_PROJECT_ENVIRONMENT=$(VENV) uv sync -q --locked --inexact --python $(PYTHON) --extra all
else
	@$(PIP) "pip>=25.1" && $(PIP) -e ".[all]" --group dev
endif
	@touch $@ $(VENV)/.installed-demo

$(VENV)/.installed-docs: pyproject.toml | $(VENV)/.installed-dev
	@$(PIP) --group docs && touch $@

clean:  ## remove the virtual environments and caches
	rm -rf site .venv .venv-vllm .mypy_cache .ruff_cache .pytest_cache build dist
