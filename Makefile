# `make demo` shows the product, `make test` proves it. Both install what they need.

PYTHON ?= python3
VENV   := .venv

.PHONY: help demo test test-lint test-unit test-server test-chart test-images test-cluster test-e2e test-faults \
        venv lint format crd lock bench bench-image bench-reconcile up down status clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## A cluster, the images, the chart, a model: ask it a question
	@$(PYTHON) -m dev.demo

test: ## Every stage: lint, unit, server, chart, images, cluster, e2e, faults
	@$(PYTHON) -m dev.suite

test-lint test-unit test-server test-chart test-images test-cluster test-e2e test-faults: test-%: ## One stage alone
	@$(PYTHON) -m dev.suite $* $(if $(ARGS),-- $(ARGS))

venv: ## The Python environment of development, in .venv
	@$(PYTHON) -m dev.environment

lint: venv ## ruff, mypy and hadolint
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy \
	  && $(VENV)/bin/hadolint Dockerfile.inference Dockerfile.operator

format: venv ## Format the code
	@$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

crd: venv ## Write the CRD from the models: deploy/crds and the chart's copy
	@PYTHONPATH=operator $(VENV)/bin/python -m llm_operator.crd

lock: venv ## Renew requirements/ from pyproject.toml
	@$(PYTHON) -m dev.environment lock

bench: venv ## Speed, memory and start of the server beside a peer (ARGS="--publish")
	@$(VENV)/bin/python -m bench.serving $(ARGS)

bench-image: venv ## The images beside a single-stage build (ARGS="--hardware cpu")
	@$(VENV)/bin/python -m bench.image $(ARGS)

bench-reconcile: venv ## What reconciling costs, as a table (ARGS="--count 1000")
	@$(VENV)/bin/python -m bench.reconcile $(ARGS)

up: ## The development cluster
	@$(PYTHON) -m dev.cluster up

down: ## Stop the development cluster; images and build cache stay
	@$(PYTHON) -m dev.cluster down

status: ## Is it up?
	@$(PYTHON) -m dev.cluster status

clean: ## Stop the cluster and remove its state, images and build cache
	@$(PYTHON) -m dev.cluster down --purge
