# make quickstart   set up, then run the whole recipe on the embedded world and print its table
# make test         set up, then lint, type-check and test
# make lock         write the lock files anew: the newest of everything that setup.py allows, for every Python, with hashes
# make seeds        the quickstart with three seeds
# make reproduce    every ablation of experiments/ablations, the slow runs whose numbers stand in its README (not part of the tests)
# PYTHON= chooses one (after `make clean`, where .venv has another); else that of .venv if there is one, else the newest of those that everything was run on.
VENV ?= .venv
PYTHON ?= $(or $(wildcard $(VENV)/bin/python),$(shell .ci/find_python 3.11),python3)
UV := uv==0.13.9
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/quickstart
SEEDS ?= 3

.PHONY: quickstart test lint types unit report seeds reproduce lock clean

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
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-control.lock
	@touch $@

$(INSTALLED): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "rlhf_jax needs Python >= 3.11, this is " + sys.version.split()[0] + "; set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

# One file with markers serves every Python: JAX's newest for 3.11 is older than that for 3.12 and up.
COMPILE := .venv-lock/bin/uv pip compile -q --upgrade --universal --python-version 3.11 --fork-strategy requires-python \
  --generate-hashes --no-annotate --no-header
CONTROL := gymnax gymnasium Farama-Notifications pandas pytz seaborn

lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install -q --disable-pip-version-check $(UV)
	$(COMPILE) --extra dev setup.py -o requirements.lock
	printf '%s\n' $(CONTROL) | $(COMPILE) --no-deps - -o requirements-control.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
