# The words that people and CI use. TORCH may name another build, such as torch==2.13.0 from a CUDA index.
VENV ?= .venv
TORCH ?= torch==2.13.0
PYTHON ?= python3
SEED ?= 0
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help install check audit docs format test test-slow chaos demo bench bench-gpu wheel lock clean env

help:  ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(INSTALLED)  ## make the virtual environment with the locked packages

# pip finds a CPU build of torch where there is one, and uv the rest in seconds. Compiled here, the
# packages needn't be by the first of the demo's processes that imports them.
$(INSTALLED): requirements/requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH) uv==0.13.9
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --no-deps -r requirements/requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

check: $(INSTALLED)  ## formatting, lint, types, links of the documentation, Dockerfiles, compose file
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mkdocs build --strict
	$(BIN)/hadolint deployments/docker/Dockerfile*
	@mkdir -p build && $(BIN)/python src/alignflow/stack/credentials.py build/compose.env
	$(BIN)/docker-compose --env-file build/compose.env config --quiet

# Not part of check: it needs PyPI itself, and what it finds changes without a commit. --strict: a
# package that the index has no records of is a failure, not a pass.
audit: $(INSTALLED)  ## known vulnerabilities of the locked packages, as PyPI lists them
	$(BIN)/uv tool run --python $(BIN)/python --from pip-audit==2.10.1 pip-audit --strict --no-deps \
		--disable-pip --requirement requirements/requirements.lock

docs: $(INSTALLED)  ## the documentation as pages, into build/docs
	$(BIN)/mkdocs build --strict

format: $(INSTALLED)  ## mend formatting and what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The faults, few tests that take long, are begun first: at the end one process would wait for them.
test: $(INSTALLED)  ## all tests but the slow ones
	$(PYTEST) -m "not slow" --numprocesses=2 --dist=loadfile tests/unit
	$(PYTEST) -m "not slow" --numprocesses=2 --dist=loadfile --no-loadscope-reorder tests/chaos \
		tests/integration

test-slow: $(INSTALLED)  ## the tests that take minutes
	$(PYTEST) -m "slow and not chaos"

chaos: $(INSTALLED)  ## faults at random moments (SEED=0), into docs/reliability.md
	$(PYTEST) tests/chaos --seed $(SEED)
	$(BIN)/python tests/support/chaos/table.py

demo: $(INSTALLED)  ## from preference data to a registered model, on a CPU
	$(BIN)/alignflow run deployments/recipes/demo.yaml

bench: $(INSTALLED)  ## all measurements, into benchmarks/results/ and the README
	for stage in sft rm dpo ppo grpo; do $(BIN)/python benchmarks/vs_trl.py --stage $$stage --write || exit; done
	for stage in sft reward_model dpo; do $(BIN)/python benchmarks/parity.py --stage $$stage --model tiny \
		--learning-rate 1e-3 --write || exit; done
	for stage in ppo rloo; do $(BIN)/python benchmarks/parity.py --stage $$stage || exit; done
	for suite in truthfulqa toxigen; do $(BIN)/python benchmarks/eval.py --suite $$suite --write || exit; done
	for script in cost scaling data overhead load; do $(BIN)/python benchmarks/$$script.py --write || exit; done
	[ -z "$$ALIGNFLOW_DATA" ] || $(BIN)/python benchmarks/judges.py --write
	$(BIN)/python benchmarks/data.py --rows 100000 --formats csv parquet --write
	$(BIN)/python benchmarks/results.py

bench-gpu: $(INSTALLED)  ## the measurements that need CUDA, into benchmarks/results/gpu.md
	$(BIN)/python benchmarks/gpu.py --write

wheel: $(INSTALLED)  ## build the wheel
	$(BIN)/uv build --quiet --wheel --python $(BIN)/python --out-dir dist

lock: pyproject.toml requirements/lock-overrides.txt  ## resolve the locked packages anew
	$(BIN)/uv pip compile pyproject.toml --quiet --extra demo --extra lm-eval --extra kubernetes --extra dask \
		--extra stack --group dev --python-version 3.11 \
		--override requirements/lock-overrides.txt --custom-compile-command "make lock" \
		--output-file requirements/requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --extra demo --extra kubernetes --extra stack \
		--python-version 3.11 --override requirements/lock-overrides.txt \
		--constraint requirements/requirements.lock --no-annotate --custom-compile-command "make lock" \
		--output-file requirements/images.lock

clean:  ## remove what runs left behind: models, runs, caches
	rm -rf .alignflow dist build

env: .env  ## write .env with random passwords for docker compose

.env:
	$(PYTHON) src/alignflow/stack/credentials.py .env
