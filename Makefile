# Every target installs its own dependencies. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes
COMPILE := $(RUN) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help serve dev migrate rollback distribute migration test faults coverage load bench lint format types audit lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/runtime ## Serve on HOST and PORT, on the embedded PostgreSQL unless DATABASE_URL is set
	@exec $(RUN) -m service serve

dev: $(VENV)/development ## Serve, and restart whenever a file changes
	@exec $(RUN) -m watchfiles --filter all "$(RUN) -m service serve" service sql migrations

migrate: $(VENV)/runtime ## Apply the pending migrations
	@$(RUN) -m service migrate

rollback: $(VENV)/runtime ## Roll back the latest migration
	@$(RUN) -m service rollback

distribute: $(VENV)/runtime ## Have Citus distribute the tables of DATABASE_URL over its servers
	@$(RUN) -m service distribute

migration: $(VENV)/runtime ## Create a new pair of migration files: make migration NAME=add-colour
	$(if $(NAME),,$(error NAME is missing: make migration NAME=add-colour))
	@file=$$($(RUN) -m yoyo new --batch --no-config-file --sql --message "$(NAME)" migrations) \
		&& file=$${file#Created file } && touch "$${file%.sql}.rollback.sql" \
		&& echo "$$file" && echo "$${file%.sql}.rollback.sql"

test: $(VENV)/development ## Run the tests, or some kinds: make test KIND="http races"
	@$(RUN) -m pytest -n 2 --dist loadfile $(or $(addprefix tests/,$(KIND)),--ignore tests/faults tests)

faults: $(VENV)/development ## Run the fault injection tests under load (five minutes)
	@$(RUN) -m pytest tests/faults

coverage: $(VENV)/development ## Run the tests and list the lines they do not cover
	@rm -f .coverage*
	@$(RUN) -m coverage run -m pytest --ignore tests/faults
	@$(RUN) -m coverage combine --quiet
	@$(RUN) -m coverage report

load: $(VENV)/development ## Send random requests to a running service and check it: make load N=100 CONCURRENCY=10
	@$(RUN) bench/load.py --url http://127.0.0.1:$(or $(PORT),3000) --requests $(or $(N),100) --concurrency $(or $(CONCURRENCY),10)

bench: $(VENV)/development ## Run all benchmarks (half an hour); QUICK=1: three minutes; ONLY="W1 W7": only these
	@$(RUN) -m bench $(if $(QUICK),--size quick --results .bench) $(if $(ONLY),--only $(ONLY))

lint: $(VENV)/development ## Check style, formatting and import directions
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@$(VENV)/bin/lint-imports --no-cache

format: $(VENV)/development ## Fix style and formatting
	@$(RUN) -m ruff check --fix
	@$(RUN) -m ruff format

types: $(VENV)/development ## Check the types
	@$(RUN) -m mypy

audit: $(VENV)/development ## Check the locked versions for known vulnerabilities; needs internet access
	@$(RUN) -m pip_audit --strict --disable-pip --require-hashes --requirement requirements-development.lock

lock: $(VENV)/development ## Update the lock files from pyproject.toml
	@$(COMPILE) --upgrade --output-file requirements.lock
	@$(COMPILE) --upgrade --constraint requirements.lock --group development \
		--output-file requirements-development.lock

clean: ## Remove installed and generated files; the data in .data/ stay
	@rm -rf $(VENV) .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find service tests bench -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/runtime: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or later is required; choose one with make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) -r requirements.lock
	@touch $@

$(VENV)/development: requirements-development.lock $(VENV)/runtime
	@echo "Installing the development dependencies ..."
	@$(INSTALL) -r requirements-development.lock
	@touch $@
