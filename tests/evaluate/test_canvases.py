"""What a canvas of its own costs a model: compared with itself on the square one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.detector import Detector, load
from blu_export.errors import UsageError
from blu_export.evaluate.canvases import canvas_name, compare_canvases, on_square

FakeOnnx = Callable[..., Path]


def photo(height: int, width: int, gray: int) -> Any:
    return np.full((height, width, 3), gray, np.uint8)


def test_matches_and_average_precision(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    """The fake finds the whole photo, on any canvas; the score depends on the padding."""
    from PIL import Image

    own, square = (load(fake_onnx(image_resize_mode=mode, image_max_dim=128)) for mode in ("fit", "square"))
    sizes = [(40, 64), (64, 30)]
    records = []
    for number, (height, width) in enumerate(sizes):
        path = tmp_path / f"{number}.png"
        Image.fromarray(photo(height, width, 200)).save(path)
        outline = [[0, 0, width, 0, width, height, 0, height]]
        records.append(Record(number, str(path), height, width, (Annotation(1, (0, 0, height, width), outline),)))
    dataset = Dataset(own.spec.class_names, tuple(records), "made")
    found = compare_canvases(own, square, [photo(*size, 200) for size in sizes], dataset)
    values = found.to_json()
    assert (values["canvas"], values["approximation"], values["images"]) == ("fit", True, 2)
    assert values["matched"] == values["instances"] > 0
    assert values["annotated_images"] == 2
    assert set(values["average_precision"]) == {"box", "mask"}
    for scores in values["average_precision"].values():
        assert scores["square"] > 0.5
        assert scores["delta"] == scores["own"] - scores["square"]
    assert any("points" in line for line in found.lines())
    assert "average_precision" not in compare_canvases(own, square, [photo(40, 64, 9)]).to_json()


def test_only_the_canvas_may_differ(fake_onnx: FakeOnnx) -> None:
    own = load(fake_onnx(image_resize_mode="fit"))
    other = load(fake_onnx(detection_min_confidence=0.5))
    assert own.spec != other.spec
    with pytest.raises(UsageError, match="differ in more than their canvas"):
        compare_canvases(own, Detector(other.runner), [photo(40, 64, 9)])


def test_names(fake_onnx: FakeOnnx) -> None:
    spec = load(fake_onnx()).spec
    camera = spec.replace(image_resize_mode="rectangle", image_canvas=(64, 128))
    assert canvas_name(camera) == "64x128"
    assert canvas_name(on_square(camera)) == f"square {spec.image_max_dim}x{spec.image_max_dim}"
