"""A small model as Keras weights and as the ONNX file exported from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models import small_export, small_weights


@pytest.fixture(scope="session")
def pair() -> tuple[Path, Path]:
    """(weights .h5, exported .onnx) of the small model."""
    return small_weights(), small_export()


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """128 px with structure at every scale."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 128, (8, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    return (coarse + random.integers(0, 60, (128, 128, 3))).astype(np.uint8)
