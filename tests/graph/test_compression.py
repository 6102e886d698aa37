"""Weights stored in half, and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from blu_export.graph.checks import check_graph
from blu_export.graph.compose import compose
from blu_export.graph.compression import compress, restore
from blu_export.graph.split import split


def test_compressed_file_is_half_the_size_and_computes_in_float32(
    subnetworks: dict[str, onnx.ModelProto], small_spec: Any, load: Any, canvases: NDArray[np.uint8]
) -> None:
    plain = compose(subnetworks, small_spec)
    small = compress(plain)
    onnx.checker.check_model(small, full_check=True)
    check_graph(small, "portable")
    assert small.ByteSize() < 0.6 * plain.ByteSize()
    feeds = {"canvas": canvases[:2], "window": np.tile(np.float32([0, 0, 128, 128]), (2, 1))}
    rounded = load(small).run(["detections"], feeds)[0]
    # Rounded weights in a plain float32 graph: the very same numbers.
    np.testing.assert_array_equal(rounded, load(restore(small)).run(["detections"], feeds)[0])


def test_restore_leaves_nothing_behind(subnetworks: dict[str, onnx.ModelProto], small_spec: Any) -> None:
    plain = compose(subnetworks, small_spec)
    back = restore(compress(plain))
    assert [node.name for node in back.graph.node] == [node.name for node in plain.graph.node]
    for before, after in zip(plain.graph.initializer, back.graph.initializer, strict=True):
        assert (before.name, before.data_type) == (after.name, after.data_type)
        values = numpy_helper.to_array(before)
        if values.dtype == np.float32:
            np.testing.assert_allclose(numpy_helper.to_array(after), values, rtol=2**-11, atol=2**-24)
    assert restore(plain) is plain


def test_parts_of_a_compressed_file_are_plain(subnetworks: dict[str, onnx.ModelProto], small_spec: Any) -> None:
    parts = split(compress(compose(subnetworks, small_spec)), small_spec)
    kinds = {t.data_type for part in parts.values() for t in part.graph.initializer}
    assert TensorProto.FLOAT16 not in kinds
    assert {"Cast"}.isdisjoint(node.op_type for part in parts.values() for node in part.graph.node)


def test_numbers_beyond_half_stay_as_they_are() -> None:
    large = numpy_helper.from_array(np.full((2, 2), 1e5, np.float32), "box_head/large/kernel")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    node = helper.make_node("MatMul", ["x", large.name], ["y"], "box_head/large")
    model = helper.make_model(helper.make_graph([node], "large", [x], [y], [large]))
    assert compress(model).graph.initializer[0].data_type == TensorProto.FLOAT
