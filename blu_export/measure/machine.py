"""What this machine is, and the most that its processor can do: the ceiling of every benchmark."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import numpy as np

from blu_export.runtime.cpu import processor

_PACKAGES = ("blu-export", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino",
             "tensorrt", "numpy", "opencv-python-headless")  # fmt: skip
_PEAK_SIZE = 2048
_PEAK_REPEATS = 12


def describe() -> dict[str, Any]:
    """Processor, cores, memory and versions, as JSON values."""
    return {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def processor_name() -> str:
    """The processor's name with the vector extensions that matter to inference."""
    name, extensions = processor()
    return f"{name} ({', '.join(extensions)})" if extensions else name


def matrix_peaks(threads: int) -> dict[str, float]:
    """Measured matrix peak, operations per second by precision, the best of the engines here.

    A product of two 2048×2048 matrices in each runtime that is installed; the fastest repeat counts,
    since a ceiling is what the machine can do undisturbed.
    """
    peaks = {"float32": _best_rate(_numpy_product())}
    for precision, product in _onnxruntime_products(threads).items():
        peaks[precision] = max(peaks.get(precision, 0.0), _best_rate(product))
    for precision, product in _openvino_products(threads).items():
        peaks[precision] = max(peaks.get(precision, 0.0), _best_rate(product))
    return peaks


def _best_rate(product: Callable[[], Any]) -> float:
    product()
    best = float("inf")
    for _ in range(_PEAK_REPEATS):
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return 2.0 * _PEAK_SIZE**3 / best


def _operands() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(0)
    shape = (_PEAK_SIZE, _PEAK_SIZE)
    return random.standard_normal(shape, np.float32), random.standard_normal(shape, np.float32)


def _numpy_product() -> Callable[[], Any]:
    a, b = _operands()
    out = np.empty_like(a)
    return lambda: np.matmul(a, b, out=out)


def _product_model(kind: str) -> bytes:
    """ONNX model of one product; the right-hand matrix is a constant, as weights are."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    a, b = _operands()
    if kind == "float32":
        nodes = [helper.make_node("MatMul", ["a", "b"], ["c"])]
        weights, dtype, out = b, TensorProto.FLOAT, TensorProto.FLOAT
    else:
        nodes = [helper.make_node("MatMulInteger", ["a", "b"], ["c"])]
        weights, dtype, out = (b * 30).clip(-127, 127).astype(np.int8), TensorProto.UINT8, TensorProto.INT32
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("a", dtype, a.shape)],
        [helper.make_tensor_value_info("c", out, a.shape)],
        [numpy_helper.from_array(weights, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _onnxruntime_products(threads: int) -> dict[str, Callable[[], Any]]:
    try:
        import onnxruntime as ort
    except ImportError:
        return {}
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    products: dict[str, Callable[[], Any]] = {}
    a, _ = _operands()
    for precision, value in (("float32", a), ("int8", (a * 30 + 128).clip(0, 255).astype(np.uint8))):
        session = ort.InferenceSession(_product_model(precision), options, providers=["CPUExecutionProvider"])
        products[precision] = partial(session.run, None, {"a": value})
    return products


def _openvino_products(threads: int) -> dict[str, Callable[[], Any]]:
    try:
        import openvino as ov
    except ImportError:
        return {}
    from blu_export.runtime.openvino import has_bf16

    a, _ = _operands()
    core = ov.Core()
    products: dict[str, Callable[[], Any]] = {}
    hints = {"float32": "f32"}
    if has_bf16():
        hints["bf16"] = "bf16"
    for precision, hint in hints.items():
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        request = core.compile_model(core.read_model(_product_model("float32")), "CPU", settings).create_infer_request()
        request.set_input_tensor(ov.Tensor(a))
        products[precision] = request.infer
    return products


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
