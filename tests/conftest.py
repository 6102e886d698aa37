"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before TensorFlow is imported anywhere: no noise about GPUs on every test's stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=40, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden results and photos beside the checkout; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the golden results in {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden_weights(shared: Path) -> Callable[[str], Path]:
    """``golden_weights(cfg)``: the path of that configuration's .h5, built once per user and generator version."""

    def weights(cfg: str) -> Path:
        golden = shared / "golden"
        generator = golden / "make_weights.py"
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blu-export-tests"
        newest = max(
            int(path.stat().st_mtime)
            for path in (generator, golden / f"manifest_{cfg}.json", golden / f"calib_{cfg}.npz")
        )
        path = cache / f"{cfg}-{newest}.h5"
        if not path.exists():
            cache.mkdir(parents=True, exist_ok=True)
            # A temporary name and a rename: several xdist workers may build it at once.
            with tempfile.TemporaryDirectory(dir=cache) as folder:
                made = Path(folder) / "weights.h5"
                subprocess.run([sys.executable, generator, cfg, made], check=True, stdout=subprocess.DEVNULL)
                made.replace(path)
        return path

    return weights


GoldenCase = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="session")
def golden_case(shared: Path) -> Callable[[str, str], GoldenCase]:
    """``golden_case(cfg, image)``: what the original returned, as a dict of arrays.

    The keys of the .npz (see shared/README.md), plus ``image``: the input pixels, uint8 [H,W,3] RGB, and
    ``masks``: bool [H,W,N], decoded from ``masks_rle``. ``cfg`` may be ``edge_cases``.
    """

    def case(cfg: str, image: str) -> GoldenCase:
        import json

        from PIL import Image
        from pycocotools import mask as coco_mask

        golden = shared / "golden"
        with np.load(golden / "expected" / cfg / f"{image}.npz") as file:
            arrays: GoldenCase = dict(file)
        photo = golden / "images" / f"{image}.png"
        if photo.exists():
            with Image.open(photo) as opened:
                arrays["image"] = np.asarray(opened.convert("RGB"))
        if "masks_rle" in arrays:
            rles = json.loads(str(arrays["masks_rle"]))
            height, width = arrays["image"].shape[:2] if "image" in arrays else (0, 0)
            arrays["masks"] = coco_mask.decode(rles).astype(bool) if rles else np.zeros((height, width, 0), dtype=bool)
        return arrays

    return case
