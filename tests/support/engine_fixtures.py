"""Fixtures of the engines' tests."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from full_models import DEMO_PHOTO, exported
from made import made

if TYPE_CHECKING:
    from blu_export.export.engine_graph import Prepared

Prepare = Callable[..., "Prepared"]


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


@pytest.fixture(scope="session")
def prepare_once(small_onnx: Path) -> Prepare:
    """``prepare``, whose result for the small model and the demo photo is made once: many tests begin with it."""
    from blu_export.export.engine_graph import Prepared, prepare
    from blu_export.spec import ModelSpec

    def once(
        path: Path, precision: str, photos: Iterable[Path], method: str = "minmax", canvas: str | None = None
    ) -> Prepared:
        photos = list(photos)
        if path != small_onnx or [Path(photo) for photo in photos] != [DEMO_PHOTO]:
            return prepare(path, precision, photos, method, canvas)
        ranges = method if precision == "int8" else "any"  # half has none

        def make(file: Path) -> None:
            prepared = prepare(path, precision, photos, method, canvas)
            file.write_bytes(pickle.dumps(vars(prepared) | {"spec": prepared.spec.to_json()}))

        fields = pickle.loads(made(f"prepared-{precision}-{ranges}-{canvas}.pickle", make, path).read_bytes())
        return Prepared(**fields | {"spec": ModelSpec.from_json(fields["spec"], "the prepared model")})

    return once
