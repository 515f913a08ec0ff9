# `make` lists the targets. They run in .venv, which is created from requirements.lock when a target first needs it.
.DEFAULT_GOAL := help
.PHONY: help bare check test pure agents shots demo dev bench bench-quick bench-board chaos cluster mutants fuzz clients lint format docs lock lock-image audit sbom image clean
BIN := .venv/bin
READY := .venv/ready
FIGURES := .taskherd/chaos.jsonl
# The checksum of all files with which the tests without services have passed.
PASSED := .venv/pure-passed
CLUSTER_FIGURES := .taskherd/cluster.jsonl
AGENTAPI ?= agentapi

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements.lock pyproject.toml .ci/bootstrap
	@sh .ci/bootstrap

check: $(READY) ## check format, lint, types, imports, dead code, dependencies, and run the pure tests; no services, a minute or two
	@$(MAKE) --no-print-directory -j2 lint pure

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/deptry . --no-ansi
	$(BIN)/deptry src --no-ansi --optional-dependencies-dev-groups dev
	@sh .ci/board-types

# Bytecode is kept whatever the environment says: the tests start hundreds of processes.
pure test: export PYTHONDONTWRITEBYTECODE =

pure: $(READY)
	@tree=$$(sh .ci/tree) && rm -f $(PASSED) && set -x && \
	$(BIN)/pytest -q -n 2 --dist loadfile tests/pure && echo "$$tree" > $(PASSED)

# The tests without services compute, the others wait. In processes that have run others they take five times as long.
PARALLEL = -n 5 --dist loadfile --no-loadscope-reorder
test: $(READY) ## run all tests except the long chaos campaigns, on real RabbitMQ and PostgreSQL; twenty to thirty minutes on two cores
	@tree=$$(sh .ci/tree); if [ -n "$$tree" ] && [ "$$tree" = "$$(cat $(PASSED) 2> /dev/null)" ]; then \
	echo "tests/pure passed, and no file has changed since: not run again"; pure=0; \
	else set -x; $(BIN)/pytest -q -n 3 --dist loadfile tests/pure; pure=$$?; fi; set -x; \
	$(BIN)/pytest -q -m "not chaos and not cluster and not agents" $(PARALLEL) --ignore tests/pure tests && exit $$pure

# npm install, which checks the lock's hashes as npm ci does: npm 11 refuses a lock without OpenCode's builds for other systems.
# Aider does not run on Python 3.13, so it needs PYTHON_3_12.
PYTHON_3_12 ?= python3.12
agents: $(READY) ## run real agents from npm and PyPI, and AgentAPI (AGENTAPI=program), against a scripted model; TEST= selects (needs npm, PYTHON_3_12)
	@mkdir -p .agents && cp tests/real_agents/npm/*.json .agents/
	npm install --silent --no-fund --no-audit --prefix .agents
	@$(BIN)/python -m venv .agents/mini && .agents/mini/bin/pip install -q --require-hashes -r tests/real_agents/python/mini-swe-agent.txt
	@if $(PYTHON_3_12) --version > /dev/null 2>&1; then $(PYTHON_3_12) -m venv .agents/aider-chat && \
		.agents/aider-chat/bin/pip install -q --require-hashes -r tests/real_agents/python/aider-chat.txt; fi
	AGENTAPI=$(AGENTAPI) CLAUDE=$(CURDIR)/.agents/node_modules/.bin \
	PYTHON_AGENTS=$(CURDIR)/.agents/mini/bin:$(CURDIR)/.agents/aider-chat/bin $(BIN)/pytest -q -m agents --timeout 300 $(or $(TEST),tests/real_agents)

demo: $(READY) ## run the whole system on this machine for a minute; STAY=1 keeps it up, to look at the board
	@$(BIN)/python -m examples.demo

bare: ## run demo and tests on a bare Debian 13 in a root of its own (needs root); TEST=tests/dev selects tests, WAYS= and more in .ci/bare
	@sh .ci/bare

dev: $(READY) ## run private RabbitMQ and PostgreSQL, a worker, the API and a runner until Ctrl-C
	@$(BIN)/taskherd dev

bench: $(READY) ## measure reports/s end to end, compared with an ack-only consumer
	$(BIN)/python -m benchmarks

bench-quick: $(READY) ## the same with smaller runs
	$(BIN)/python -m benchmarks --quick

bench-board: $(READY) ## measure the board: weight, time until it is usable, filters, first rows, feeds, memory; PARTS= selects, OPTIONS=--quick
	$(BIN)/python -m benchmarks.cases.board $(PARTS) $(OPTIONS)

chaos: $(READY) ## kill, freeze and starve worker, broker and database for half an hour; ROW=word selects tests
	@mkdir -p $(dir $(FIGURES)) && : > $(FIGURES)
	@CHAOS_FIGURES=$(FIGURES) $(BIN)/pytest -q --timeout 3600 $(if $(ROW),-k "$(ROW)") tests/chaos; ended=$$?; \
	$(BIN)/python -m tests.chaos.figures $(FIGURES) $(if $(ROW),,docs/reliability.md); exit $$ended

cluster: $(READY) ## break clusters of RabbitMQ (as root) and PostgreSQL under load, in an hour; ROW=word selects (installs Debian's haproxy, patroni, etcd-server)
	@if [ -z "$(ROW)" ]; then $(MAKE) cluster ROW=RabbitMQ; ended=$$?; $(MAKE) cluster ROW=PostgreSQL && exit $$ended; exit 1; fi; \
	mkdir -p $(dir $(CLUSTER_FIGURES)) && : > $(CLUSTER_FIGURES); \
	CHAOS_FIGURES=$(CLUSTER_FIGURES) $(BIN)/pytest -q --timeout 900 -k "$(ROW)" tests/cluster; ended=$$?; \
	$(BIN)/python -m tests.chaos.figures $(CLUSTER_FIGURES) $(if $(filter RabbitMQ PostgreSQL,$(ROW)),docs/reliability.md "make cluster ROW=$(ROW)"); exit $$ended

mutants: $(READY) ## change the code in COUNT small ways drawn by SEED, and print the changes that no test notices; hours (needs bubblewrap)
	$(BIN)/python -m tests.mutation --seed $(or $(SEED),1) --count $(or $(COUNT),200) --processes $(or $(PROCESSES),3)

fuzz: $(READY) ## fuzz the API for ten minutes with requests made from its OpenAPI document
	FUZZ_SECONDS=600 $(BIN)/pytest -q tests/api/test_fuzz.py

clients: $(READY) ## run unmodified clients from PyPI against a real API, and record their requests
	python3 -m venv .taskherd/clients/fleet && .taskherd/clients/fleet/bin/pip install -q setup-fleet-mcp==0.12.1
	$(BIN)/pytest -q -s -p no:xdist tests/clients/fleet_mcp.py

image: ## build the container image taskherd:dev (needs Docker); BASE=image@sha256:… pins its base
	docker build $(if $(BASE),--build-arg BASE=$(BASE)) -t taskherd:dev .

sbom: $(READY) ## write a CycloneDX SBOM of the image's Python packages to build/sbom.cdx.json
	@sh deploy/sbom.sh

audit: $(READY) ## look for known vulnerabilities and risky code, and write an SBOM of the image
	@sh deploy/audit.sh

format: $(READY) ## format the code and apply automatic fixes
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

shots: $(READY) ## take pictures of the board's pages into build/shots; PAGES="home tasks" selects them
	$(BIN)/python -m tests.board.shots $(PAGES)

docs: $(READY) ## regenerate the generated documents
	$(BIN)/python -m taskherd.messages.asyncapi > docs/asyncapi.yaml
	$(BIN)/python -m taskherd.api.http.openapi > docs/openapi.json
	$(BIN)/python -m taskherd.domain.diagram > docs/state-diagram.md
	$(BIN)/python -m taskherd.settings > docs/settings.md
	$(BIN)/python -m taskherd.observability.metrics > docs/metrics.md
	$(BIN)/python -m tests.clients.codersdk_routes

PIN := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate
lock: $(READY) ## pin the newest dependencies with hashes (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--all-extras pyproject.toml -o requirements.lock --upgrade
	$(MAKE) lock-image

lock-image: # the image's runtime and build dependencies: subsets of requirements.lock, at the same versions
	$(PIN) --extra server --extra otel pyproject.toml -c requirements.lock -o deploy/image/requirements.lock
	echo hatchling | $(PIN) - -c requirements.lock -o deploy/image/build.lock

clean: ## remove the virtual environment, caches and the private services' data
	rm -rf .venv .taskherd .agents .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
