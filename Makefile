# Everything a newcomer needs is installed by these targets into .venv; only Python 3.11+ and make come first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
BROKER ?=
SECONDS ?= 600
SEED ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo run test soak bench check format clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## make .venv with everything pinned in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed; say which: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@touch $@

demo: $(STAMP) ## deliver a few dozen events to three receivers, replay what failed (BROKER=amqp://… for RabbitMQ)
	$(BIN)/hookhare demo $(if $(BROKER),--broker '$(BROKER)') $(ARGS)

run: $(STAMP) ## the embedded mode, up until Ctrl-C
	$(BIN)/hookhare dev $(ARGS)

test: $(STAMP) ## all tests, over a real RabbitMQ and a real PostgreSQL
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

soak: $(STAMP) ## everything goes wrong for SECONDS=600, and then the accounting has to be right (SEED=…, ARGS='--broker embedded')
	$(BIN)/python -m tests.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

bench: $(BENCH_STAMP) ## measure, and write bench.json
	$(BIN)/python -m tests.bench $(ARGS)

check: $(STAMP) ## format, lint, types, import rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into its one format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove what was built, not what was kept
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
