"""Fixtures of the engines' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from full_models import DEMO_PHOTO, exported


@pytest.fixture(scope="session")
def make_onnx() -> Callable[[str], Path]:
    """``make_onnx(name)``: the portable file of one of ``specs()``."""
    return exported


@pytest.fixture(scope="session")
def small_onnx(make_onnx: Callable[[str], Path]) -> Path:
    """A small model, portable."""
    return make_onnx("small")


@pytest.fixture(scope="session")
def demo_photo() -> Path:
    """The photo that ships with the project."""
    return DEMO_PHOTO
