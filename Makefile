# make setup | train | test | test-slow | lint | format          e.g. make train GAME=Breakout HEAD=mse SEED=1 STEPS=200000
PYTHON ?= python3
VENV   ?= .venv
EXTRA   =
GAME    = RoadRunner
ENV     =
AGENT   = dqn
HEAD    =
PRESET  = $(if $(or $(ENV),$(filter cql,$(AGENT))),,quick)
SEED    = 0
STEPS   =
FRAMES  =
ARGS    =

comma := ,
ifneq ($(filter-out cuda13,$(EXTRA)),)
$(error EXTRA=$(EXTRA) is unknown; allowed: cuda13)
endif
READY := $(VENV)/.ready$(EXTRA)

.PHONY: setup train test test-slow lint format

setup: $(READY)

# dopamine-rl is an oracle in tests; it comes without its dependencies, TensorFlow among them, which those modules do without.
$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 setup")'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt -e '.[dev$(if $(EXTRA),$(comma)$(EXTRA))]'
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c .ci/constraints.txt --no-deps dopamine-rl
	@touch $@

train: setup
	$(VENV)/bin/python scripts/train.py $(if $(ENV),--env $(ENV),--game $(GAME)) --agent $(AGENT) $(if $(HEAD),--head $(HEAD)) \
		$(if $(PRESET),--preset $(PRESET)) --seed $(SEED) \
		$(if $(STEPS),--steps $(STEPS)) $(if $(FRAMES),--frames $(FRAMES)) $(ARGS)

test: setup
	$(VENV)/bin/python -m pytest

test-slow: setup
	$(VENV)/bin/python -m pytest -m slow

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
