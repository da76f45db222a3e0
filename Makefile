# Every command sets up what it needs. `make check` is what CI runs.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# uv reads its own variable for local wheel folders; an empty value is fine.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export UV_COMPILE_BYTECODE = 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

help: ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

setup: .venv/.stamp ## a virtual environment with everything, dev tools included

.venv/.stamp: pyproject.toml clients/python/pyproject.toml constraints.txt scripts/setup.sh
	PYTHON=$(PYTHON) scripts/setup.sh
	touch $@

up: setup ## run everything on this machine; Ctrl-C ends it
	$(BIN)/herd up

demo: setup ## start everything, stream one answer, print its trace id
	$(BIN)/herd generate --up --trace "Count to ten"

test: setup ## all tests that need no GPU
	$(BIN)/python -m pytest

test-gpu: ## the tests that need an NVIDIA GPU
	$(PYTHON) -m pytest -m gpu tests/gpu

faults: setup ## kill, freeze, drain, restart everything under load: make faults KILLS=1000 SEED=7 MINUTES=60
	$(BIN)/python -m tests.faults.chaos --kills $(or $(KILLS),100) --seed $(or $(SEED),1) --minutes $(or $(MINUTES),60)

lint: setup ## style, types, imports, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_sizes.py

protos: ## regenerate the Python messages and stubs, and the TypeScript ones
	scripts/protos.sh
	npm ci --silent --no-audit --no-fund --prefix clients/typescript
	npm run --silent generate --prefix clients/typescript

check: lint ## what CI runs
	scripts/protos.sh --check
	scripts/buf.sh lint
	scripts/buf.sh format --diff --exit-code
	scripts/breaking.sh
	$(MAKE) test

.PHONY: help setup up demo test test-gpu faults lint protos check
