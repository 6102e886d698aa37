"""Fixtures of the engines' tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from full_models import DEMO_PHOTO, export, specs


@pytest.fixture(scope="session")
def make_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """``make_onnx(name)``: the portable file of one of ``specs()``, made once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = export(specs()[name], tmp_path_factory.mktemp(name) / f"{name}.onnx")
        return made[name]

    return make


@pytest.fixture(scope="session")
def small_onnx(make_onnx: Callable[[str], Path]) -> Path:
    """A small model, portable."""
    return make_onnx("small")


@pytest.fixture(scope="session")
def demo_photo() -> Path:
    """The photo that ships with the project."""
    return DEMO_PHOTO
