# make demo   finds the garments on a photo;  make test   runs all tests. Both set everything up first.
VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready

.PHONY: setup demo test lint format types benchmark serve clean

setup: $(READY)

# Again only after pyproject.toml has changed.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is not on PATH. Install it, or set PYTHON=." >&2; exit 4; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/blu infer models/demo/astronaut.jpg --format table --format overlay --out out

# One process per core; TensorFlow and ONNX Runtime tests are heavy enough to fill it.
test: setup
	$(BIN)/python -m pytest --numprocesses=auto $(PYTEST_OPTIONS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: setup
	$(BIN)/python -m benchmarks $(BENCHMARK_OPTIONS)

serve: setup
	$(BIN)/blu serve

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
