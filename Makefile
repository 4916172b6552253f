# Everything runs in .venv, which is made and kept current here: `make test` works on a fresh clone.

.DEFAULT_GOAL := help
.PHONY: help demo app test test-transformers test-lerobot test-vllm fuzz bench bench-kernels lint format types wheel setup clean

VENV := .venv
BIN := $(VENV)/bin

# The first Python that is new enough and can make an environment; `make PYTHON=... test` overrides.
USABLE := import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
ifndef PYTHON
PYTHON := $(shell for python in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	$$python -c '$(USABLE)' >/dev/null 2>&1 && echo $$python && break; done)
endif

# The stamp carries a checksum of all that the environment depends on: Python, place, pyproject.toml.
IDENTITY := import sys; print(sys.version, sys.base_prefix)
KEY := $(shell { $(or $(PYTHON),false) -c '$(IDENTITY)'; pwd; cat pyproject.toml; } 2>/dev/null \
	| cksum | cut -d ' ' -f 1)
READY := $(VENV)/.ready-$(KEY)

PIP_DEFAULT_TIMEOUT ?= 120
PIP_RETRIES ?= 10
export PIP_DEFAULT_TIMEOUT PIP_RETRIES

# The demo and the page run in $(VENV) where that is current, else in a smaller environment.
DEMO_VENV := .venv-demo
DEMO_READY := $(or $(wildcard $(READY)),$(DEMO_VENV)/.ready-demo-$(KEY))
APP_READY := $(or $(wildcard $(READY)),$(DEMO_VENV)/.ready-app-$(KEY))

# The tests start some fifty Pythons; without bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

ARGS ?=
PYTEST_ARGS ?=
# Tests run in so many processes; WORKERS=0 for one, in which a debugger works.
WORKERS ?= 2
BENCH_JSON ?=
# Some two minutes; BENCH_ONLY= times everything, the token cache too.
BENCH_ONLY ?= -k "not from_the_cache"

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(DEMO_READY) ## metric depth on real pictures (ARGS="..." goes to the demo)
	@$(<D)/bin/python examples/00_demo.py $(ARGS)

app: $(APP_READY) ## a web page that shows depth, with the demo host (ARGS="--port 8000")
	@$(<D)/bin/python -m clipdepth_plugin app --host demo $(ARGS)

test: $(READY) ## the whole test suite (PYTEST_ARGS="-k head" goes to pytest)
	@$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(PYTEST_ARGS)

test-transformers: $(READY) ## host tests under transformers 4.57, 5.5 and the newest
	@$(BIN)/python results/transformers_compatibility.py

test-lerobot: $(READY) ## LeRobot's own policies, in an environment of its own (LEROBOT_VENV=... takes one)
	@$(BIN)/python results/lerobot_policies.py $(ARGS)

test-vllm: $(READY) ## vLLM's own engine on the CPU, in an environment of its own (VLLM_VENV=... takes one)
	@$(BIN)/python results/vllm_engine.py $(ARGS)

fuzz: $(READY) ## ten minutes of hostile input (ARGS="--minutes 60 --only picture")
	@$(BIN)/python -m tests.fuzz $(ARGS)

bench: $(READY) ## two minutes of timed benchmarks, in results/ as JSON (PYTEST_ARGS="--benchmark-compare=FILE")
	@json=$(BENCH_JSON); \
	test -n "$$json" || json=results/benchmarks_$$(date -u +%F).json; \
	$(BIN)/pytest tests/benchmarks --benchmark-enable --benchmark-only --benchmark-max-time=0.5 \
		--benchmark-json="$$json" $(BENCH_ONLY) $(PYTEST_ARGS) && echo "written: $$json"

bench-kernels: $(READY) ## every fused op and head, in results/kernels_*.md (ARGS="--device cuda" on a GPU)
	@$(BIN)/python -m tests.benchmarks.kernels $(ARGS)

lint: $(READY) ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(READY) ## let ruff mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(READY) ## mypy, strict
	@$(BIN)/mypy

.PHONY: docs
docs: $(READY) ## the documentation in site/; a warning fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY) ## sdist and wheel in dist/
	@rm -rf build dist
	@$(BIN)/python -m build --no-isolation >/dev/null
	@ls dist/*

setup: $(READY) ## the environment in .venv, with everything installed
	@echo "$(VENV) is current"

clean: ## remove the environment, caches and build products
	@rm -rf $(VENV) $(DEMO_VENV) .venv-lerobot .venv-vllm build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.benchmarks .coverage htmlcov demo-output
	@find clipdepth_plugin adapters kernels tests examples -name __pycache__ -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted install is taken up again. An environment of another
# Python, of another place or without pip is made anew; otherwise it is brought up to date.
$(READY): EXTRAS := dev
$(DEMO_VENV)/.ready-demo-$(KEY): EXTRAS := demo
$(DEMO_VENV)/.ready-app-$(KEY): EXTRAS := demo,app
$(READY) $(DEMO_VENV)/.ready-demo-$(KEY) $(DEMO_VENV)/.ready-app-$(KEY):
	@[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or newer with the venv and ensurepip modules on the" \
		"path. Install one (on Debian: python3-venv too), or say make PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -c '$(USABLE)' || { echo "$(PYTHON) will not do: Python 3.11 or newer with the venv" \
		"and ensurepip modules is needed." >&2; exit 1; }
	@rm -f $(@D)/.ready-*
	@[ "$$($(@D)/bin/python -c '$(IDENTITY)' 2>/dev/null)" = "$$($(PYTHON) -c '$(IDENTITY)')" ] \
		&& grep -qF '$(CURDIR)/$(@D)' $(@D)/bin/activate \
		&& $(@D)/bin/python -m pip --version >/dev/null 2>&1 \
		|| { echo "Making $(@D) with $$($(PYTHON) --version)"; $(PYTHON) -m venv --clear $(@D); }
	@echo "Installing into $(@D) (the first time: 2 to 4 minutes and some GB of downloads)"
	@log=$(@D)/install.log; : > $$log; for attempt in 1 2; do \
		$(@D)/bin/python -m pip install --disable-pip-version-check --prefer-binary \
			--editable '.[$(EXTRAS)]' >> $$log 2>&1 && exit 0; \
		[ $$attempt = 2 ] || echo "Once more, as downloads may have broken off" >&2; \
	done; grep -i '^error' $$log | tail -n 1 >&2; \
	echo "pip failed; all that it printed is in $$log" >&2; exit 1
	@touch $@
