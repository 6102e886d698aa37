"""Half and int8 of the trained default model, on the validation photos that it was judged by.

Bounds are those for trained weights: instances and masks (parity.verify.TOLERANCES), and average precision.
``python -m benchmarks precision`` measures all photos and calibration methods.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from benchmarks.precision import MAX_AP_LOSS, Study
from blu_export.embedded import embedded
from blu_export.export.onnx import export_onnx
from blu_export.export.options import ExportOptions

PHOTOS = 150
"""All of them: on 40, files that differ by a rounding of their biases lie a point of average precision apart."""


@pytest.fixture(scope="module")
def dataset(shared: Path) -> str:
    folder = shared / "data" / "garments"
    if not folder.is_dir():
        pytest.skip("needs data/garments in the shared folder beside the checkout")
    return os.fspath(folder)


@pytest.fixture(scope="module")
def study(dataset: str) -> Study:
    """The shipped file, whose canvases fit."""
    return Study(embedded(), dataset, PHOTOS, say=print)


@pytest.fixture(scope="module")
def square_study(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The same weights on the square canvas."""
    path = tmp_path_factory.mktemp("square") / "garments.onnx"
    settings = ["image_resize_mode=square"]
    export_onnx(embedded("garments.h5"), path, ExportOptions(settings=settings, verify=False, compress_to_fp16=True))
    return Study(path, dataset, PHOTOS, say=print)


def check(study: Study, precision: str, target: str) -> None:
    row = study.measure(precision, target)
    assert row["parity"]["passed"], row["parity"]["checks"]
    assert row["parity"]["instances"] >= PHOTOS
    for kind, loss in row["ap_loss"].items():
        assert loss <= MAX_AP_LOSS[precision], f"{kind} AP falls by {loss:.2f} points"


@pytest.mark.long
@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_within_the_bounds(study: Study, precision: str, target: str) -> None:
    check(study, precision, target)


@pytest.mark.long
@pytest.mark.parametrize("target", ["portable", "tensorrt"])
def test_int8_on_the_square_canvas_is_within_the_bounds(square_study: Study, target: str) -> None:
    check(square_study, "int8", target)
