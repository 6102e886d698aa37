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
from numpy.typing import NDArray

from blu_export.benchmark.products import product_model
from blu_export.runtime.cpu import processor

_PACKAGES = ("blu-export", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino",
             "tensorrt", "numpy", "opencv-python-headless")  # fmt: skip
_PRODUCTS = ((512, 32), (2048, 1))
"""(side of the matrices, products in a row): the small stay in the cores' caches, the large start fewer kernels."""
_PEAK_REPEATS = 20


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
    """Measured matrix peak, operations per second by precision: the best of the engines here and of _PRODUCTS.

    The fastest repeat counts, since a ceiling is what the machine can do undisturbed.
    """
    peaks: dict[str, float] = {}
    for size, count in _PRODUCTS:
        products = [("float32", _numpy_product(size, count))]
        products += _onnxruntime_products(size, count, threads)
        products += _openvino_products(size, count, threads)
        for precision, product in products:
            peaks[precision] = max(peaks.get(precision, 0.0), 2.0 * size**3 * count / _fastest(product))
    return peaks


def _fastest(product: Callable[[], Any]) -> float:
    product()
    seconds = []
    for _ in range(_PEAK_REPEATS):
        start = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _operands(size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two matrices; the second keeps the spread of what it is multiplied with."""
    random = np.random.default_rng(0)
    a, b = (random.standard_normal((size, size), np.float32) for _ in range(2))
    return a, b / np.float32(np.sqrt(size))


def _numpy_product(size: int, count: int) -> Callable[[], Any]:
    a, b = _operands(size)
    out = np.empty_like(a)

    def product() -> None:
        for _ in range(count):
            np.matmul(a, b, out=out)

    return product


def _onnxruntime_products(size: int, count: int, threads: int) -> list[tuple[str, Callable[[], Any]]]:
    try:
        import onnxruntime as ort
    except ImportError:
        return []
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # Or equal products would be computed once.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    products: list[tuple[str, Callable[[], Any]]] = []
    a, b = _operands(size)
    for precision, value in (("float32", a), ("int8", (a * 30 + 128).clip(0, 255).astype(np.uint8))):
        content = product_model(a, b, precision, count)
        session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        products.append((precision, partial(session.run, None, {"a": value})))
    return products


def _openvino_products(size: int, count: int, threads: int) -> list[tuple[str, Callable[[], Any]]]:
    try:
        import openvino as ov
    except ImportError:
        return []
    from blu_export.runtime.openvino import has_bf16

    a, b = _operands(size)
    core = ov.Core()
    products: list[tuple[str, Callable[[], Any]]] = []
    for precision, hint in (("float32", "f32"), ("bf16", "bf16"))[: 1 + has_bf16()]:
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
        model = core.read_model(product_model(a, b, "float32", count))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        request.set_input_tensor(ov.Tensor(a))
        products.append((precision, request.infer))
    return products


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
