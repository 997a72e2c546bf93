# Two commands for a newcomer, `make demo` and `make test`; each sets up .venv first. Needs Python 3.11 or later.
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests mostly wait for processes, so more than one runs on each core; those that share a process run in one group.
IN_PARALLEL := -n auto --dist loadgroup
PYTEST := $(BIN)/pytest $(IN_PARALLEL)
# Some images set it, and then each test process compiles all tests anew, for 20 seconds.
export PYTHONDONTWRITEBYTECODE :=
SOURCES := mcp_celery workers config tests bench

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-long test-pythons test-lowest test-stress test-browser test-faults test-peers coverage \
  test-fastmcp fastmcp-suite mutants fuzz soak screenshots pictures conformance bench lint format docs docs-site release-check constraints clean

help: ## Show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Make .venv with the pinned dependencies and the project (the targets below do it by themselves)

$(READY): constraints.txt pyproject.toml .ci/bootstrap
	@echo "Setting up $(VENV) (once; again when constraints.txt or pyproject.toml changes)"
	@.ci/bootstrap
	@touch $@

demo: $(READY) ## Watch a tool call run as a Celery job, its progress pushed to the client
	@$(BIN)/mcp-celery demo

test: $(READY) ## Run the tests that every change needs, in some minutes; ARGS="-k name" selects
	@$(PYTEST) --quick $(ARGS)

test-all: $(READY) ## Run all tests, on every pool, broker and result backend, with faults, peers and a browser, in half an hour
	@$(PYTEST) $(ARGS)
	@$(BIN)/python -m tests.conformance

test-pythons: $(READY) ## Run unit, contract and smoke tests on each CPython found (PATH, pyenv, uv), each in a venv of its own
	@$(BIN)/python -m tests.pythons $(ARGS)

test-lowest: $(READY) ## Run unit, contract and smoke tests on the lowest versions of packages that pyproject.toml allows
	@$(BIN)/python -m tests.lowest_versions

test-long: $(READY) ## Run each test on each pool, large random tests, the store's on a cluster, the lowest versions and the soaks, in an hour: before a release
	@$(PYTEST) --all-pools --long --hypothesis-profile=long $(ARGS)
	@$(PYTEST) tests/contract --cluster
	@$(BIN)/python -m tests.lowest_versions
	@for store in single sentinel cluster; do $(BIN)/python -m tests.soak --store $$store --minutes 5 || exit 1; done

test-stress: $(READY) ## Run `make test` three times beside busy processors, each time in another order
	@$(BIN)/python -m tests.stress $(IN_PARALLEL) --quick $(ARGS)

coverage: $(READY) ## Measure the coverage of `make test-all`; ARGS="--quick" that of `make test`
	@$(BIN)/coverage erase
	@$(BIN)/coverage run -m pytest $(IN_PARALLEL) $(ARGS); status=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/coverage report; exit $$status

test-browser: $(READY) ## Test Flower in a real browser (skipped without Chromium)
	@$(PYTEST) tests/browser $(ARGS)

test-faults: $(READY) ## Kill and stop workers, stores and brokers, and see that nothing is lost
	@$(PYTEST) tests/integration/faults $(ARGS)

test-peers: $(READY) ## Test with clients of other makers, each in a venv of its own (skipped where they cannot be installed)
	@$(PYTEST) tests/peers --long $(ARGS)

test-fastmcp: $(READY) ## Test FastMCP servers on the lowest and the newest FastMCP 4, each in a venv of its own
	@$(BIN)/python -m tests.fastmcp_versions $(ARGS)

fastmcp-suite: $(READY) ## Run FastMCP's own task tests over this package, on 4.1.4 and the newest 4.x
	@$(BIN)/python -m tests.fastmcp_suite $(ARGS)

mutants: $(READY) ## Break the engine and the Lua scripts in small ways, and see that a test fails; ALL=1 for all modules
	@$(BIN)/python -m tests.mutants $(if $(ALL),--all) $(ARGS)

fuzz: $(READY) ## Send 10,000 malformed requests of both revisions to servers; ARGS="--fuzz-seed 7" sends others
	@$(PYTEST) tests/integration/test_malformed_requests.py --requests 10000 $(ARGS)

soak: $(READY) ## Kill everything at random under load, and audit what became of it; ARGS="--store cluster --minutes 20 --write"
	@$(BIN)/python -m tests.soak $(ARGS)

screenshots: $(READY) ## Take the pictures of docs/operations.md anew
	@$(BIN)/pytest tests/browser --screenshots docs/img -k "asyncio and (test_the_list or test_the_page)"

pictures: $(READY) ## Take the pictures of terminals in README.md and docs anew, of real runs (port 8000 has to be free)
	@$(BIN)/python -m tests.pictures

conformance: $(READY) ## Run the official conformance suite's task scenarios (installs the suite from npm)
	@$(BIN)/python -m tests.conformance

bench: $(READY) ## Measure against a bare MCP server and FastMCP 4; ARGS="--quick" for a look
	@$(BIN)/python -m bench $(ARGS)

lint: $(READY) ## Check style, types and the layers
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo --no-cache

format: $(READY) ## Rewrite the sources in the project's style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: $(READY) ## Write the pages that are made from the code
	@$(BIN)/python docs/generate.py

docs-site: $(READY) ## Build the documentation site in build/site, without network; a warning is an error
	@$(BIN)/zensical build --clean --strict

release-check: $(READY) ## Build the release, install it on each Python found, and run the README and the demo from there
	@$(BIN)/python -m tests.release_check

constraints: $(READY) ## Compile constraints.txt anew; UPGRADE=1 takes the newest of everything
	@$(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --all-extras --group dev --no-strip-extras \
	  --generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make constraints" \
	  $(if $(UPGRADE),--upgrade) --output-file constraints.txt

clean: ## Remove .venv, caches and builds
	rm -rf $(VENV) build dist htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
