# Two commands: `make demo` sets everything up and transcribes real audio; `make test` sets everything up and passes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := $(VENV)/.setup

.PHONY: setup demo test chaos check clean

setup: $(SETUP)

$(SETUP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,s3,parity,bench,dev]'
	touch $@

demo: setup
	$(BIN)/earwitness demo

# Two files at a time: half of the tests wait for a server or a cluster. The longest comes first (tests/conftest.py).
test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# As long as it takes: every crash point, every fault, and EARWITNESS_CHAOS_KILLS random kills.
chaos: setup
	EARWITNESS_CHAOS=1 EARWITNESS_CHAOS_KILLS=$${EARWITNESS_CHAOS_KILLS:-300} $(BIN)/python -m pytest tests/chaos

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo
