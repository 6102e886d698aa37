"""Canvases that fit, and one rectangle: every runtime finds what the Keras model finds on the same canvas."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from golden_cases import RUNTIMES

from blu_export.detections import Detections
from blu_export.image import decode, mold, unmold
from blu_export.parity.match import match
from blu_export.parity.verify import TOLERANCES
from blu_export.runtime.base import Runner

FIT = ["image_resize_mode=fit"]
CAMERA = ["image_resize_mode=rectangle", "image_canvas=192,256"]


def detect(runner: Runner, photos: Sequence[Any]) -> list[Detections]:
    molded = [mold(decode(photo), runner.spec) for photo in photos]
    raw = [runner.run(each.canvas[None], each.window[None]) for each in molded]
    return [unmold(rows[0], masks[0], each, runner.spec) for (rows, masks), each in zip(raw, molded, strict=True)]


@pytest.mark.long  # tests/graph compares canvases that follow the photo with Keras each time
@pytest.mark.parametrize(
    ("cfg", "settings"),
    [
        ("resnet50_small", FIT),
        ("resnet50_small", CAMERA),
        ("resnet50_df2", FIT),
        ("resnet101_coco", FIT),
    ],
)
def test_every_runtime_finds_what_keras_finds(
    cfg: str, settings: list[str], golden: Any, images_of: Any, runner: Callable[..., Runner]
) -> None:
    photos = [golden(cfg, image).image for image in images_of(cfg)]
    expected = detect(runner(cfg, "keras", *settings), photos)
    assert sum(map(len, expected)) > 20
    for runtime in RUNTIMES[1:]:
        results = [
            match(first, second)
            for first, second in zip(expected, detect(runner(cfg, runtime, *settings), photos), strict=True)
        ]
        matched, total = (sum(getattr(result, name) for result in results) for name in ("matched", "total"))
        print(f"{cfg} {settings[0]} in {runtime}: {matched} of {total}")
        assert matched >= TOLERANCES["float32"].matched * total
        assert all(result.total - result.matched <= 1 for result in results), "random weights leave near-ties, not two"
        ious = np.concatenate([result.mask_iou for result in results])
        assert np.median(ious) >= TOLERANCES["float32"].mask_iou
