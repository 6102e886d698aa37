"""The golden configurations, and what the original returned for one photo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

CONFIGURATIONS = {
    "resnet50_small": ["image_min_dim=256", "image_max_dim=256"],
    "resnet50_df2": ["image_min_dim=512", "image_max_dim=512"],
    "resnet101_coco": ["image_min_dim=800", "image_max_dim=1024"],
}
"""Configuration -> its settings."""


def long_but(*quick: str) -> list[Any]:
    """The configurations as test parameters: all but ``quick`` take minutes."""
    return [pytest.param(cfg, marks=[] if cfg in quick else pytest.mark.long) for cfg in CONFIGURATIONS]


RUNTIMES = ("keras", "onnxruntime", "openvino", "onnxruntime-tensorrt")
"""The last is the graph for TensorRT, run by ONNX Runtime."""


@dataclass(frozen=True)
class Golden:
    """What the original returned for one photo."""

    name: str
    image: NDArray[np.uint8]
    canvas: NDArray[np.uint8]
    window: NDArray[np.float32]
    rois: NDArray[np.int32]
    class_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    crops: tuple[NDArray[np.bool_], ...]
    arrays: dict[str, Any]
