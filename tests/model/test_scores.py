"""Score calibration."""

from __future__ import annotations

import numpy as np
import pytest
from shapes import tiny_model

from blu_export.errors import UsageError
from blu_export.model.scores import shift_scores


def test_named_classes_are_shifted_and_no_others() -> None:
    model = tiny_model()
    layer = model.learned_layers()["mrcnn_class_logits"]
    kernel, bias = layer.get_weights()
    shift_scores(model, {"disc": 1.5, "triangle": -0.5})
    moved_kernel, moved = layer.get_weights()
    np.testing.assert_array_equal(moved_kernel, kernel)
    np.testing.assert_allclose(moved - bias, [0, 0, 1.5, -0.5], atol=1e-6)
    with pytest.raises(UsageError, match="no class coat"):
        shift_scores(model, {"coat": 1.0})
