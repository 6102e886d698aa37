"""Fixtures of the exporter's tests: a small model with weights that give detections, and graphs run in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import small_models
from numpy.typing import NDArray
from onnx import TensorProto, helper

from blu_export.graph.builder import Graph, Value
from blu_export.spec import ModelSpec

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

    def run(
        build: Callable[..., Value | tuple[Value, ...]], *, opset: int = small_models.OPSET, **arrays: NDArray[Any]
    ) -> Arrays:
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


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., ModelSpec]:
    """``make_spec(**changes)``: a small spec."""
    return small_models.small_spec


@pytest.fixture(scope="session")
def make_model() -> Callable[[ModelSpec], Any]:
    """``make_model(spec)``: a MaskRCNN with random weights that give detections."""
    return small_models.random_model


@pytest.fixture(scope="session")
def small_spec() -> ModelSpec:
    """That of the small model."""
    return small_models.small_spec()


@pytest.fixture(scope="session")
def small_model() -> Any:
    """One small square model for all tests that only read it."""
    return small_models.small_model()


@pytest.fixture(scope="session")
def subnetworks() -> dict[str, onnx.ModelProto]:
    """Its subnetworks."""
    return small_models.small_subnetworks()


@pytest.fixture
def canvases() -> NDArray[np.uint8]:
    """Eight deterministic canvases of 128 px with structure at every scale."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
    fine = random.integers(0, 60, (8, 128, 128, 3), dtype=np.uint8)
    return (coarse.repeat(16, axis=1).repeat(16, axis=2) // 2 + fine).astype(np.uint8)
