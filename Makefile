# `make demo` and `make test` are all a newcomer types; both build .venv first if it is missing or outdated.
PYTHON ?= python3
export HF_HUB_DISABLE_TELEMETRY = 1

# Where the digits (avdigits) and videos (grid) of the recipes are. Without digits there, those of the Hub are taken.
NANO4M_DATA ?= ../shared/data

.PHONY: demo test bench avdigits grid clean

demo: .venv/installed
	.venv/bin/python scripts/demo.py

test: .venv/installed-test
	.venv/bin/python -m pytest

avdigits: .venv/installed
	.venv/bin/python scripts/run_recipe.py configs/recipes/av_digits.yaml $(if $(wildcard $(NANO4M_DATA)/avdigits),--data_dir $(NANO4M_DATA)/avdigits)

grid: .venv/installed-judges
	.venv/bin/python scripts/run_recipe.py configs/recipes/grid.yaml --data_dir $(NANO4M_DATA)/grid

# Give it the machine for itself; `.venv/bin/python -m benchmarks.run --help` tells of smaller runs and of GPUs.
bench: .venv/installed
	.venv/bin/python -m benchmarks.run

.venv/installed: setup.py
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --upgrade pip
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/installed-test: .venv/installed
	.venv/bin/python -m pip install --quiet --editable ".[test]"
	touch $@

.venv/installed-judges: .venv/installed
	.venv/bin/python -m pip install --quiet --editable ".[judges]"
	touch $@

clean:
	rm -rf .venv outputs
