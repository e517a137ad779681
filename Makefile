# make quickstart   set up, then run the whole recipe on the embedded world and print its table
# make test         set up, then lint, type-check and test
# make seeds        the quickstart with three seeds
# make reproduce    every ablation of experiments/ablations, the slow runs whose numbers stand in its README (not part of the tests)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/quickstart
SEEDS ?= 3

.PHONY: quickstart test lint types unit report seeds reproduce clean

quickstart: $(INSTALLED)
	$(BIN)/python -m rlhf_jax.main --config=experiments/menagerie/pipeline.py --workdir=$(RUN)
	$(BIN)/python -m rlhf_jax.apps.report $(RUN)

test: lint types unit

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy

unit: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=15 tests

seeds: $(INSTALLED)
	for seed in 0 1 2; do \
	  $(BIN)/python -m rlhf_jax.main --config=experiments/menagerie/pipeline.py \
	    --config.seed=$$seed --workdir=runs/seeds/seed$$seed || exit 1; done

# One that cannot be carried out does not keep the others from it; the status says that there was one.
reproduce: $(VENV)/.installed-control
	status=0; for name in $$($(BIN)/python -m experiments.ablations.reproduce --list | cut -d' ' -f1); do \
	  $(BIN)/python -m experiments.ablations.reproduce $$name --seeds=$(SEEDS) --workdir=runs/reproduce || status=1; done; exit $$status

# gymnax and what it brings, for the two ablations on control environments.
$(VENV)/.installed-control: $(INSTALLED) requirements-control.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -r requirements-control.lock
	@touch $@

$(INSTALLED): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rlhf_jax needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
