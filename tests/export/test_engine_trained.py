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
from blu_export.errors import ModelFileError

PHOTOS = 40
"""Enough for average precision to move by less than its bound; all 150 take minutes."""


@pytest.fixture(scope="module")
def study(shared: Path) -> Study:
    try:
        model = embedded()
    except ModelFileError as error:
        pytest.skip(f"{error.what} It is still being trained.")
    dataset = shared / "data" / "garments"
    if not dataset.is_dir():
        pytest.skip("needs data/garments in the shared folder beside the checkout")
    return Study(model, os.fspath(dataset), PHOTOS, say=print)


@pytest.mark.long
@pytest.mark.parametrize("target", ["portable", "tensorrt"])
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_within_the_bounds(study: Study, precision: str, target: str) -> None:
    row = study.measure(precision, target)
    assert row["parity"]["passed"], row["parity"]["checks"]
    assert row["parity"]["instances"] >= PHOTOS
    for kind, loss in row["ap_loss"].items():
        assert loss <= MAX_AP_LOSS[precision], f"{kind} AP falls by {loss:.2f} points"
