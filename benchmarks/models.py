"""Models for speed alone: full-size networks whose weights are made in place, the same every time.

Random convolutions would let activations grow or vanish and detect nothing. So each batch norm
takes the statistics of one photo, and the class scores are scaled until about as many objects are
found as on an ordinary photo. Such a model costs what a trained one costs and says nothing about
accuracy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.embedded import DEFAULT_MODEL, DEMO_PHOTO, embedded
from blu_export.spec import ModelSpec

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "benchmarks" / "cache"
RESULTS = ROOT / "benchmarks" / "results"
PHOTO_SIZE = (640, 480)
DEFAULT = "default"
"""Stands for the embedded model beside the names of SPECS."""
SPECS = {
    "resnet50-512": ModelSpec(
        class_names=("BG", *(f"class {i}" for i in range(1, 14))),
        backbone="resnet50",
        image_min_dim=512,
        image_max_dim=512,
    ),
    "resnet101-1024": ModelSpec(
        class_names=("BG", *(f"class {i}" for i in range(1, 81))),
        backbone="resnet101",
        image_min_dim=800,
        image_max_dim=1024,
    ),
}
DETECTIONS = 24
"""Objects that the scores are scaled to find on the photo that the statistics come from."""

Say = Callable[[str], None]


def make_model(spec: ModelSpec, photo: Any, seed: int = 1) -> Any:
    """A MaskRCNN with deterministic weights that finds about DETECTIONS objects on ``photo`` (uint8 RGB)."""
    import keras

    from blu_export.image import mold
    from blu_export.model.mask_rcnn import MaskRCNN

    keras.utils.set_random_seed(seed)
    model = MaskRCNN(spec)
    for layer in model.learned_layers().values():
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Conv2DTranspose)):
            shape = layer.kernel.shape
            fan_in = shape[3] if isinstance(layer, keras.layers.Conv2DTranspose) else np.prod(shape[:3])
            layer.kernel.assign(keras.random.normal(shape, stddev=float(np.sqrt(2.0 / fan_in))))
    molded = mold(photo, spec)
    canvas, window = molded.canvas[None], molded.window[None]
    with _statistics_from_one_batch(model):
        *pyramid, logits, _, deltas = model.trunk(model.preprocess(canvas), training=True)
    _scale(model, "rpn_class_raw", 1.0 / float(np.std(logits)))
    _scale(model, "rpn_bbox_pred", 0.5 / float(np.std(deltas)))
    stages = model.detect(canvas, window)[2]
    pooled = _pool(model, stages["rois"], pyramid, spec.pool_size, canvas)
    with _statistics_from_one_batch(model):
        logits, _, deltas = model.box_head(pooled, training=True)
    _scale(model, "mrcnn_bbox_fc", 0.2 / float(np.std(deltas)))
    pooled = _pool(model, stages["rois"][:, :100], pyramid, spec.mask_pool_size, canvas)
    with _statistics_from_one_batch(model):
        model.mask_head(pooled, training=True)
    _find_about(model, canvas, window, DETECTIONS)
    return model


def say(message: str) -> None:
    """One line of progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def models_of(names: str) -> list[str]:
    """DEFAULT and names of SPECS, separated by commas; ends the program where there is none of a name."""
    models = [name for name in names.split(",") if name]
    if unknown := [name for name in models if name not in (DEFAULT, *SPECS)]:
        raise SystemExit(f"There is no model '{unknown[0]}'; there are {', '.join((DEFAULT, *SPECS))}.")
    return models


def photo_640() -> Path:
    """The demo photo at 640×480, as a JPEG file in the cache."""
    from PIL import Image

    path = CACHE / "photo-640x480.jpg"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with Image.open(embedded(DEMO_PHOTO)) as image:
            width = image.width
            cropped = image.convert("RGB").crop((0, 0, width, width * PHOTO_SIZE[1] // PHOTO_SIZE[0]))
            cropped.resize(PHOTO_SIZE).save(path, quality=92)
    return path


def model_files(model: str, photo: Path, dataset: Path | None) -> tuple[Path, Path]:
    """(weights, portable ONNX file) of a model; made on first use, with an int8 file beside the ONNX file.

    The default model has an int8 file only where there are annotated photos, to calibrate and to judge it.
    """
    if model == DEFAULT:
        onnx = embedded(DEFAULT_MODEL)
        return onnx.with_suffix(".h5"), write_default_int8(onnx, dataset, CACHE, say) if dataset else onnx
    weights = write_weights(model, photo, CACHE, say)
    return weights, write_onnx(weights, photo, CACHE, say)


def write_weights(name: str, photo: Path, folder: Path, say: Say) -> Path:
    """The weights file of one of SPECS; made once, then found again."""
    from blu_export.extras import import_extra
    from blu_export.files import atomic_write
    from blu_export.image import decode

    path = folder / f"{name}.h5"
    if not path.exists():
        import_extra("tensorflow")
        from blu_export.model.weights import save_weights

        say(f"making the weights of {name}")
        with atomic_write(path) as temporary:
            save_weights(make_model(SPECS[name], decode(photo)), temporary)
    return path


@cache
def exports_folder(parent: Path) -> Path:
    """Where exported files of this very exporter lie; those of another version are removed."""
    import hashlib
    import shutil

    import blu_export

    package = Path(next(iter(blu_export.__path__)))
    sources = sorted(path for folder in ("export", "graph", "quantize") for path in (package / folder).glob("*.py"))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = parent / f"export-{key}"
    for old in parent.glob("export-*"):
        if old != folder:
            shutil.rmtree(old)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_onnx(weights: Path, photo: Path, folder: Path, say: Say) -> Path:
    """The exported file, and the int8 one beside it; made once, then found again.

    Parity is not checked: with random weights it says nothing. Ranges of int8 come from ``photo`` alone.
    """
    from blu_export.runtime.tuning import precision_path

    path = exports_folder(folder) / f"{weights.stem}.onnx"
    for precision in ("float32", "int8"):
        output = precision_path(path, precision)
        if not output.exists():
            from blu_export.export.onnx import export_onnx
            from blu_export.export.options import ExportOptions

            say(f"exporting {output.name}")
            export_onnx(weights, output, ExportOptions(precision=precision, verify=False), calibration=[photo])
    return path


def with_fit(models: list[Path], folder: Path) -> list[Path]:
    """The files, and after each square one the same on canvases that fit: NAME.fit.onnx in ``folder``."""
    from blu_export.benchmark.recompose import recompose
    from blu_export.runtime.onnx_file import read_onnx, spec_of

    found = []
    for path in models:
        found.append(path)
        if spec_of(read_onnx(path), str(path)).image_resize_mode == "square":
            found.append(folder / f"{path.stem}.fit.onnx")
            found[-1].write_bytes(recompose(path, image_resize_mode="fit").data)
    return found


def photos_of(dataset: str | Path, split: str) -> list[Any]:
    """As many decoded photos as calibration uses, evenly spread over a split."""
    from blu_export.data.load import load_dataset
    from blu_export.quantize.precision import MOST_PHOTOS

    photos = load_dataset(dataset, split)
    return [photos.load_image(i) for i in range(0, len(photos), max(1, len(photos) // MOST_PHOTOS))][:MOST_PHOTOS]


def write_default_int8(onnx: Path, dataset: Path, folder: Path, say: Say) -> Path:
    """A copy of the default model's file, with an int8 one beside it.

    Ranges come from photos of the train part of ``dataset``, parity from photos of its val part.
    """
    import shutil

    from blu_export.export.onnx import export_onnx
    from blu_export.export.options import ExportOptions
    from blu_export.runtime.tuning import precision_path

    path = exports_folder(folder) / onnx.name
    shutil.copyfile(onnx, path)
    output = precision_path(path, "int8")
    if not output.exists():
        say(f"exporting {output.name}")
        weights = onnx.with_suffix(".h5")
        export_onnx(
            weights,
            output,
            ExportOptions(precision="int8"),
            calibration=photos_of(dataset, "train"),
            images=photos_of(dataset, "val"),
        )
    return path


def _pool(model: Any, rois: Any, pyramid: Any, size: int, canvas: Any) -> Any:
    from blu_export.model.roi_align import pyramid_roi_align

    return pyramid_roi_align(rois, pyramid, size, canvas.shape[1:3])


def _scale(model: Any, layer: str, factor: float) -> None:
    kernel = model.learned_layers()[layer].kernel
    kernel.assign(kernel * factor)


class _statistics_from_one_batch:
    """Inside, a forward pass in training mode sets each batch norm's moving statistics outright."""

    def __init__(self, model: Any) -> None:
        self.layers = [layer for layer in model.learned_layers().values() if hasattr(layer, "moving_mean")]

    def __enter__(self) -> None:
        self.momenta = [layer.momentum for layer in self.layers]
        for layer in self.layers:
            layer.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for layer, momentum in zip(self.layers, self.momenta, strict=True):
            layer.momentum = momentum


def _find_about(model: Any, canvas: Any, window: Any, wanted: int) -> None:
    """Bisect the scale of the class scores: sharper scores let more ROIs pass the confidence threshold."""
    kernel = model.learned_layers()["mrcnn_class_logits"].kernel
    base = kernel.numpy()
    low, high = 0.0, 8.0
    for _ in range(10):
        factor = (low + high) / 2
        kernel.assign(base * factor)
        found = int((model.detect(canvas, window)[0][0, :, 4] > 0).sum())
        if found == wanted:
            return
        low, high = (factor, high) if found < wanted else (low, factor)
