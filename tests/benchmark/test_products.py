"""The products that measure a machine's peak, as ONNX and ONNX Runtime read them."""

from __future__ import annotations

import numpy as np
import pytest

from blu_export.benchmark.products import product_model


@pytest.mark.parametrize("kind", ["float32", "int8"])
def test_the_file_is_what_it_says(kind: str) -> None:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((200, 200), np.float32) / 14 for _ in range(2))
    content = product_model(a, b, kind, 3)
    onnx = pytest.importorskip("onnx", reason="needs the extra train")
    model = onnx.load_model_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    ort = pytest.importorskip("onnxruntime", reason="needs the extra cpu")
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    if kind == "float32":
        (found,) = session.run(None, {"a": a})
        np.testing.assert_allclose(found, a @ b @ b @ b, atol=1e-4)
        return
    given = (a * 30 + 128).clip(0, 255).astype(np.uint8)
    weights = (b * 30 * np.sqrt(200)).clip(-127, 127).astype(np.int8)
    for found in session.run(None, {"a": given}):
        np.testing.assert_array_equal(found, given.astype(np.int32) @ weights.astype(np.int32))
