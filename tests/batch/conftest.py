"""The fake model of the server's tests, and photos whose detections are known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("pyarrow", reason="needs the extra batch")


from batch_jobs import Color, write_photo
from fake_runner import write_model


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worker processes find the fake model too."""
    fakes = str(Path(__file__).parents[1] / "support")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [fakes, os.environ.get("PYTHONPATH")])))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "fake.onnx")


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """``photos(10, …)``: a folder with a photo per color, 00.png and so on."""

    def make(*colors: Color | int, folder: str = "photos") -> Path:
        for index, color in enumerate(colors):
            write_photo(tmp_path / folder / f"{index:02d}.png", color)
        return tmp_path / folder

    return make
