# make run     set everything up and start the live studio on http://127.0.0.1:8080
# make test    set everything up and run all tests
# make check   tests, lint, format, types, import rules
# make bench AREA=studio   one benchmark; JSON lines, the summary last
# make bench-peers         a hop of pipecat and LiveKit beside ours (installs them into .venv-peers)
# make test-systemd   the service under a real systemd, in a container of its own (root)
# make soak    ten minutes of sessions that stay, come and go: does anything grow?
# make audit   known vulnerabilities of what is installed; make sbom writes sbom.json (CycloneDX)

SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
AREA ?= studio
PORT ?= 8080
# this exact version first: a range would pull another build and gigabytes with it
TORCH := torch==2.13.0

.PHONY: run test test-fast check fix bench bench-peers audit sbom soak test-systemd clean

# 130 is Ctrl-C: that is how it is meant to end
run: $(VENV)/.run
	@echo "Starting: models are loaded and warmed up, then the page is at http://127.0.0.1:$(PORT)"
	@$(BIN)/penstock serve --port $(PORT) || [ $$? = 130 ]

test: $(VENV)/.dev
	@$(BIN)/pytest $(ARGS)

test-fast: $(VENV)/.dev
	@$(BIN)/pytest -m "not browser and not net and not slow" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/pytest $(ARGS)

fix: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	@$(BIN)/python benchmarks/$(AREA).py $(ARGS)

# Other engines, for comparison only: in an environment of their own, at the versions that were measured.
PEERS := pipecat-ai==1.14.0 livekit-agents==1.8.9 PyYAML

.venv-peers/.installed:
	@$(PYTHON) -m venv .venv-peers
	@.venv-peers/bin/pip install --quiet --disable-pip-version-check $(PEERS)
	@touch $@

bench-peers: .venv-peers/.installed
	@.venv-peers/bin/python benchmarks/peers.py $(ARGS)

# Set-up writes a stamp last, so that one that broke off starts again.
$(VENV)/.torch:
	@command -v $(PYTHON) >/dev/null || { echo "Penstock needs Python 3.11 or newer: $(PYTHON) was not found"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(v < (3, 11) and f"Penstock needs Python 3.11 or newer; this is {v[0]}.{v[1]}")'
	@echo "Setting up $(VENV), once; this takes a few minutes."
	@echo "1/3 making the environment"
	@$(PYTHON) -m venv $(VENV)
	@echo "2/3 installing torch, the largest part"
	@$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	@touch $@

$(VENV)/.run: $(VENV)/.torch pyproject.toml
	@echo "3/3 installing Penstock and what it needs"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "3/3 installing Penstock and what it and its tests need"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[espeak,hub,pocket,broker,test,dev]'
	@touch $@ $(VENV)/.run

audit: $(VENV)/.dev
	@$(BIN)/python deploy/supply/audit.py check

sbom: $(VENV)/.dev
	@$(BIN)/python deploy/supply/audit.py sbom sbom.json

test-systemd: $(VENV)/.run
	@tests/harness/systemd_root.sh

soak: $(VENV)/.dev
	@$(BIN)/python benchmarks/soak.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
