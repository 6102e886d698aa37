"""The original's intermediate tensors, stage by stage, in the Keras model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.runtime.base import Runner

ROUNDING = 1e-4
"""Of values near 1. Scores pass a softmax over sums of a thousand products."""
SAME_ROWS = 0.99
"""Share of the proposals that must be the original's: near-ties in the NMS may go either way."""

EDGE_ROWS = 0.01
"""Share of the proposals that the overshoot of ``crop_and_resize`` may touch."""

CASES = [
    ("resnet50_small", image) for image in ("astronaut", "camera_gray", "chelsea", "china", "coffee", "flower")
] + [("resnet50_df2", "flower")]


def pair_equal_rows(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Indices of rows of ``a`` and ``b`` that are equal to rounding, each used once."""
    distance = np.abs(a[:, None] - b[None]).max(axis=2)
    nearest = distance.argmin(axis=1)
    rows = np.flatnonzero(distance[np.arange(len(a)), nearest] < ROUNDING)
    _, first = np.unique(nearest[rows], return_index=True)
    return rows[first], nearest[rows[first]]


@pytest.mark.parametrize(("cfg", "image"), CASES)
def test_stages_are_the_originals(cfg: str, image: str, golden: Any, runner: Callable[..., Runner]) -> None:
    case = golden(cfg, image)
    expected = case.arrays
    _, masks, stages = runner(cfg, "keras").run_stages(case.canvas[None], case.window[None])  # type: ignore[attr-defined]
    found = {name: value[0] for name, value in stages.items()}
    if "rpn_class" in expected:
        assert np.abs(found["rpn_class"] - expected["rpn_class"]).max() < ROUNDING
        assert np.abs(found["rpn_bbox"] - expected["rpn_bbox"]).max() < 10 * ROUNDING
    rows, columns = pair_equal_rows(expected["rpn_rois"], found["rois"])
    assert len(rows) >= SAME_ROWS * len(expected["rpn_rois"])
    # The zeros that crop_and_resize writes for some boxes at the far edge are left out on purpose (ROI_EDGE).
    at_edge = (expected["rpn_rois"][rows, 2:] == 1).any(axis=1)
    for name in ("mrcnn_class", "mrcnn_bbox"):
        if name in expected:
            error = np.abs(found[name][columns] - expected[name][rows]).reshape(len(rows), -1).max(axis=1)
            assert error[~at_edge].max() < 10 * ROUNDING
            assert np.count_nonzero(error > 10 * ROUNDING) <= EDGE_ROWS * len(rows)
    used = np.flatnonzero(expected["mrcnn_detections"][:, 4])
    rows, columns = pair_equal_rows(expected["mrcnn_detections"][used, :5], found["detections"][:, :5])
    assert len(rows) >= len(used) - 2
    assert np.abs(masks[0][columns] - expected["mrcnn_mask"][used[rows]]).max() < 10 * ROUNDING


def test_the_detection_stage_is_the_originals(golden: Any, runner: Callable[..., Runner]) -> None:
    """From the original's proposals and class scores: all that differs in ``dim64`` comes before."""
    import tensorflow as tf

    from blu_export.model.boxes import normalize_window
    from blu_export.model.detection import select_detections

    case = golden("edge_cases", "dim64.0")
    model = runner("resnet50_small", "keras", "image_min_dim=64", "image_max_dim=64")
    _, _, stages = model.run_stages(case.canvas[None], case.window[None])  # type: ignore[attr-defined]
    assert np.abs(stages["rois"][0] - case.arrays["rpn_rois"]).max() < ROUNDING
    rois, scores = (tf.constant(case.arrays[name][None]) for name in ("rpn_rois", "mrcnn_class"))
    window = normalize_window(tf.constant(case.window[None]), tf.constant(case.canvas.shape[:2]))
    detections = select_detections(rois, scores, tf.constant(stages["mrcnn_bbox"]), window, model.spec)
    assert np.abs(detections.numpy()[0] - case.arrays["mrcnn_detections"]).max() < ROUNDING
