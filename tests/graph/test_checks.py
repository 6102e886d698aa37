"""The graph checks refuse what slows a runtime down or does not load in TensorRT."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from blu_export.errors import ModelFileError
from blu_export.graph.checks import check_graph
from blu_export.graph.compose import compose

FLOAT = TensorProto.FLOAT


@pytest.fixture(params=["portable", "tensorrt"])
def composed(request: Any, subnetworks: dict[str, onnx.ModelProto], small_spec: Any) -> tuple[onnx.ModelProto, str]:
    return compose(subnetworks, small_spec, request.param), request.param


def add(model: onnx.ModelProto, op_type: str, inputs: list[str], **attributes: Any) -> None:
    model.graph.node.append(helper.make_node(op_type, inputs, ["added"], f"added/{op_type}", **attributes))


def test_what_we_export_passes(composed: tuple[onnx.ModelProto, str]) -> None:
    check_graph(*composed)


def test_the_portable_form_is_not_fit_for_tensorrt(subnetworks: dict[str, onnx.ModelProto], small_spec: Any) -> None:
    with pytest.raises(ModelFileError, match="NonMaxSuppression") as caught:
        check_graph(compose(subnetworks, small_spec), "tensorrt")
    assert "MatMul in the box arithmetic" in str(caught.value) or "more" in str(caught.value)


def test_a_loop_over_boxes(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["go_on"])],
        "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []),
         helper.make_tensor_value_info("going", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("go_on", TensorProto.BOOL, [])],
    )  # fmt: skip
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], "roi_align/Loop", body=body))
    with pytest.raises(ModelFileError, match="roi_align/Loop: a Loop"):
        check_graph(model, target)


def test_crop_and_resize(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    add(model, "Resize", ["canvas", "window"], coordinate_transformation_mode="tf_crop_and_resize")
    with pytest.raises(ModelFileError, match="tf_crop_and_resize"):
        check_graph(model, target)


def test_other_operator_sets(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    add(model, "FusedConv", ["canvas"], domain="com.microsoft")
    with pytest.raises(ModelFileError, match=r"com\.microsoft\.FusedConv"):
        check_graph(model, target)


def test_outputs_of_unknown_size(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    with pytest.raises(ModelFileError, match="dynamic dimension"):
        check_graph(model, target)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelFileError, match="no fixed rank"):
        check_graph(model, target)


def test_tensors_in_other_files(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(ModelFileError, match="outside the file"):
        check_graph(model, target)


def test_half_precision_in_the_fixed_maths(composed: tuple[onnx.ModelProto, str]) -> None:
    model, target = composed
    model.graph.initializer.append(numpy_helper.from_array(np.ones(4, np.float16), "half"))
    add(model, "Mul", ["half", "half"])
    with pytest.raises(ModelFileError, match="added/Mul: Mul of the box arithmetic is not float32"):
        check_graph(model, target)


@pytest.mark.parametrize(("k", "message"), [(3841, "more than 3840"), (None, "computed k")])
def test_top_k_for_tensorrt(
    k: int | None, message: str, subnetworks: dict[str, onnx.ModelProto], small_spec: Any
) -> None:
    model = compose(subnetworks, small_spec, "tensorrt")
    if k is not None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([k], np.int64), "k"))
    model.graph.node.append(helper.make_node("TopK", ["window", "k"], ["best", "index"], "added/TopK"))
    with pytest.raises(ModelFileError, match=message):
        check_graph(model, "tensorrt")
