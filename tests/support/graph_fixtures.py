"""Fixtures of the exporter's tests: a small model with weights that give detections, and graphs run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from blu_export.graph.builder import Graph, Value
from blu_export.spec import ModelSpec

OPSET = 18
KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.bool_): TensorProto.BOOL,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(np.float16): TensorProto.FLOAT16,
}
Arrays = list[NDArray[Any]]


def session(model: onnx.ModelProto) -> Any:
    """Load a model in ONNX Runtime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def load() -> Callable[[onnx.ModelProto], Any]:
    """``load(model)``: an ONNX Runtime session."""
    return session


@pytest.fixture(scope="session")
def run_graph() -> Callable[..., Arrays]:
    """``run_graph(build, **arrays)``: what the graph that ``build(graph, *values)`` makes returns.

    ``keep`` names other outputs by ``build`` returning several values. The graph is checked strictly first.
    """

    def run(build: Callable[..., Value | tuple[Value, ...]], *, opset: int = OPSET, **arrays: NDArray[Any]) -> Arrays:
        graph = Graph(opset)
        found = build(graph, *(graph.value(name) for name in arrays))
        found = found if isinstance(found, tuple) else (found,)
        inputs = [
            helper.make_tensor_value_info(name, KINDS[array.dtype], [f"{name}_{i}" for i in range(array.ndim)])
            for name, array in arrays.items()
        ]
        outputs = [onnx.ValueInfoProto(name=value.name) for value in found]
        model = onnx.shape_inference.infer_shapes(graph.model("test", inputs, outputs), strict_mode=True)
        results: Arrays = session(model).run(None, arrays)
        return results

    return run


def small_spec(**changes: Any) -> ModelSpec:
    """The smallest sensible model: EfficientNet-Lite0 on 128 px with narrow heads."""
    fields: dict[str, Any] = {
        "class_names": ("BG", "shirt", "hat", "shoe"),
        "backbone": "efficientnet_lite0",
        "image_min_dim": 128,
        "image_max_dim": 128,
        "rpn_anchor_scales": (8, 16, 32, 64, 128),
        "top_down_pyramid_size": 32,
        "rpn_channels": 32,
        "fpn_classif_fc_layers_size": 64,
        "mask_channels": 32,
        "detection_min_confidence": 0.0,
        "detection_max_instances": 40,
        "post_nms_rois_inference": 200,
    }
    return ModelSpec(**(fields | changes))


def awake_model(spec: ModelSpec) -> Any:
    """A model with random weights whose normalization is not the identity and whose heads disagree."""
    import keras

    from blu_export.model.mask_rcnn import MaskRCNN

    keras.utils.set_random_seed(5)
    model = MaskRCNN(spec)
    random = np.random.default_rng(5)
    for name, layer in model.learned_layers().items():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + random.uniform(0, 0.3, w.shape).astype(np.float32) for w in layer.get_weights()])
        elif name in ("mrcnn_class_logits", "rpn_class_raw", "mrcnn_mask"):
            layer.set_weights([w * 20 for w in layer.get_weights()])
    return model


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ModelSpec]:
    """``make_spec(**changes)``: a small spec."""
    return small_spec


@pytest.fixture(scope="session")
def make_model() -> Callable[[ModelSpec], Any]:
    """``make_model(spec)``: a MaskRCNN with random weights that give detections."""
    return awake_model


@pytest.fixture(scope="session")
def small_model() -> Any:
    """One small square model for all tests that only read it."""
    return awake_model(small_spec())


@pytest.fixture(scope="session")
def subnetworks(small_model: Any) -> dict[str, onnx.ModelProto]:
    """Its subnetworks."""
    from blu_export.export.learned import subnetworks as convert

    return convert(small_model, OPSET)


@pytest.fixture
def canvases() -> NDArray[np.uint8]:
    """Eight deterministic canvases of 128 px with structure at every scale."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    fine = random.integers(0, 60, (8, 128, 128, 3), dtype=np.uint8)
    return (coarse.repeat(16, axis=1).repeat(16, axis=2) // 2 + fine).astype(np.uint8)
