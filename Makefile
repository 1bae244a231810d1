# Everything here starts from a fresh machine with Python 3.10 or newer and its venv module.
#
#   make demo     the main job end to end on the built-in model; results in out/demo/
#   make check    lints, types and the fast tests, in a minute and a half on two cores
#   make test     lints, types and all tests
#   make setup    only the environment, .venv
#   make bench    one step of the real network at full size, on random weights (24 GiB of memory)
#   make gpu-check   everything that only a card can tell, in one table; GPU_ARGS="--device cpu --small" on toys
#   make clean    remove results and caches; the environment stays (remove .venv by hand)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
INPUTS := pyproject.toml requirements.txt constraints.txt
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=

.PHONY: setup demo check test lint bench gpu-check clean

setup: $(STAMP)

# The stamp is newer than the files it depends on exactly when the environment is up to date; pip is not asked again.
$(STAMP): $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy -e ".[dev]"
	touch $@

demo: $(STAMP)
	$(BIN)/motion-lora demo --output out/demo $(DEMO_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

check: lint
	$(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder -m "not slow" $(TEST_ARGS)

test: lint
	$(BIN)/pytest -q -n auto --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

bench: $(STAMP)
	$(BIN)/python tools/full_size.py $(BENCH_ARGS)

gpu-check: $(STAMP)
	$(BIN)/python tools/gpu_check.py $(GPU_ARGS)

clean:
	rm -rf out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
