# What a person types. Every target sets up what it needs; nothing has to be installed first but Python >= 3.12,
# and, for the lab, Debian and Go.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := $(CURDIR)/.venv
export PATH := $(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)/tests
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
# Colours and progress bars belong to terminals; a log gets plain lines.
export PY_COLORS ?= 0

ENV := $(VENV)/.locked
LINK := .cache/collections/ansible_collections/inferops/cluster

.PHONY: docs help demo converge verify teardown test gates lint unit envoy integration lifecycle molecule lab-up lab-down bench bench-quick bench-apply fuzz env lock clean
.PHONY: compiled coverage conformance conformance-ours engines
.PHONY: platform models chaos

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: env ## From nothing to a working platform, and completions through it
	@python -m target demo

converge: env ## Run site.yml on the cluster in use (more variables: ARGS='-e key=value')
	@python -m target playbook site.yml $(ARGS)

verify: env ## Send completions through the platform, and check which pods answered
	@python -m target playbook playbooks/verify.yml $(ARGS)

teardown: env ## Remove all that site.yml made
	@python -m target playbook playbooks/teardown.yml $(ARGS)

test: env ## Everything that CI runs
	@python -m target test

gates: env ## Every check that Galaxy, Automation Hub and we ourselves ask for, on every supported ansible-core and Python
	@python -m gates $(ARGS)

lint: env ## The quick gates: style, types, licences, and Ansible's own rules at profile production
	@python -m gates --quick

unit: env ## Tests that need no cluster, and how much of the endpoint picker they cover
	pytest -q tests/unit tests/sim/tests tests/lab/tests tests/target/tests -m 'not cluster and not envoy'
	@$(MAKE) coverage

COVERED := config datalayer extproc flowcontrol plugins requests scheduling statesync
coverage: env ## The endpoint picker's own tests; fails where they reach less than 95 % of lines and branches
	coverage run -m pytest -q files/epp/tests -m 'not cluster and not envoy'
	@for room in $(COVERED); do echo "epp.$$room:"; coverage report --include="*/epp/$$room/*" --fail-under 95; done

SITE_PACKAGES = $(shell $(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
compiled: env ## The endpoint picker's compiled parts, where they are: its tests, inside of its image
	python -m lab.images.inside epp python tests/target/inside_image.py $(SITE_PACKAGES) \
		-q -p no:cacheprovider files/epp/tests --ignore=files/epp/tests/fuzz -m 'not cluster and not envoy'

envoy: env ## The endpoint picker behind the real Envoy
	pytest -q files/epp/tests -m envoy

engines: env ## The endpoint picker and real inference engines, on the CPU (the first time they are installed and built: 20 minutes)
	pytest -q tests/engines -m engines -W 'ignore:Using `@model_validator`:DeprecationWarning' $(ARGS)

integration: env ## apply_set and the EPP's discovery against a real API server (the cluster in use)
	pytest -q tests/integration files/epp/tests -m cluster -n 3 # much of it is waiting

platform: env ## The whole platform there: drift, each role verified and removed alone
	@python -m target up
	@python -m target run pytest -q tests/integration/stack -m platform \
		--ignore tests/integration/stack/test_chaos.py --ignore tests/integration/stack/test_models.py $(ARGS)

models: env ## There, too: a model deployed, given a share of another's requests, and removed; an adapter (4 minutes)
	@python -m target up
	@python -m target run pytest -q tests/integration/stack/test_models.py -m platform $(ARGS)

chaos: env ## site.yml killed at 10 random moments, run again, and compared (CHAOS_SEED repeats them)
	@python -m target up
	@CHAOS_POINTS=$${CHAOS_POINTS:-10} python -m target run pytest -q tests/integration/stack/test_chaos.py -m platform $(ARGS)

# Ours is what is shipped; PICKER=ours takes the sources, without root and buildah.
PICKER ?= image
conformance: env ## Our endpoint picker and the Go one through every case; writes docs/conformance.md
	@python -m target api
	@python -m target run python -m conformance --epp $(PICKER) --epp go --output .build/conformance --summary docs/conformance.md $(ARGS)

conformance-ours: env ## Only ours, in a few minutes
	@python -m target api
	@python -m target run python -m conformance --epp $(PICKER) --output .build/conformance $(ARGS)

lifecycle: env ## The lab itself: up, killed, up again, down without a trace (takes down a running lab)
	@python -m lab down
	pytest -q tests/lab/tests -m cluster

molecule: env ## The whole stack: create, converge, idempotence, verify, destroy
	@molecule reset # what a killed run has left, which would count as created
	molecule test

lab-up: env ## A real single-node Kubernetes on this machine, with the images loaded
	@python -m lab up

lab-down: env ## Stop it, and leave nothing behind
	@python -m lab down

bench: env ## The EPP against the Go EPP: data path, placement, scraping, scale; rewrites docs/performance.md (an hour and a half)
	@python -m target up
	@python -m target run python -m benchmarks $(ARGS)

bench-quick: env ## Only the data path's bounds, in less than 5 minutes
	@python -m target up
	@python -m target run python -m benchmarks.datapath --quick --rounds 4 --seconds 1.5 $(ARGS)

bench-apply: env ## apply_set against kubernetes.core.k8s and kubectl, in turns (the cluster in use)
	@python -m target run python -m benchmarks.apply $(ARGS)

fuzz: env ## Ten minutes of broken streams, bodies, pages and configurations for the EPP
	FUZZ_SECONDS=600 pytest -q files/epp/tests/fuzz --timeout 900

docs: env ## Make the pages about plugins and values, and the roles' tables of variables, anew
	@PYTHONPATH=files/epp/src python -m epp plugins --markdown > docs/plugins.md
	@python -m reference.values
	@python -m reference.variables

env: $(ENV) $(LINK) ## The development environment, from the locks

$(ENV): requirements/bootstrap.txt requirements/dev.txt
	@python=$$(tests/find-python) && \
	echo "development environment: $$($$python --version) in .venv" && \
	$$python -m venv --clear $(VENV) && \
	pip install -q --require-hashes -r requirements/bootstrap.txt && \
	uv pip sync -q --python $(VENV)/bin/python --require-hashes requirements/dev.txt && \
	touch $@

$(LINK):
	@mkdir -p $(dir $@) && ln -sfn ../../../.. $@

lock: env ## Resolve requirements/*.in and the images' requirements again
	@tests/lock

clean: ## Remove the environment and everything built in the checkout (asks for lab-down first)
	@if [ -e .lab/kubeconfig ] && [ -x $(VENV)/bin/python ]; then python -m lab down; fi
	rm -rf .venv .cache .build .lab .ansible .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
