"""The most that a card's matrix units do in a runtime's hands: the ceiling of every model there."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from blu_export.errors import ModelFileError
from blu_export.tensorrt.builder import is_rtx, make_logger, rtx_capability, title
from blu_export.tensorrt.cuda import Cuda

SIZE = 4096
PRODUCTS = 8
"""In a row, so that starting a kernel does not count."""
REPEATS = 15


def engine_peak(trt: ModuleType, cuda: Cuda, precision: str) -> float:
    """Operations per second of products of SIZE x SIZE matrices; the fastest repeat counts.

    Raises:
        BluError: the builder has no such product, or the GPU failed.
    """
    logger = make_logger(trt, quiet=True)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if is_rtx(trt):
        config.num_compute_capabilities = 1
        config.set_compute_capability(rtx_capability(trt, cuda.capability), 0)
    engine = None
    if parser.parse(products(precision).SerializeToString()):
        data = builder.build_serialized_network(network, config)
        runtime = trt.Runtime(logger)
        engine = None if data is None else runtime.deserialize_cuda_engine(bytes(data))
    if engine is None:
        raise ModelFileError(f"{title(trt)} does not build a product in {precision}: {logger.last_error()}.")
    context = engine.create_execution_context()
    size = SIZE * SIZE * 2
    pointers = [int(cuda.call("cudaMalloc", size)) for _ in range(2)]
    stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
    try:
        for name, pointer in zip(("x", "y"), pointers, strict=True):
            context.set_tensor_address(name, pointer)

        def run() -> None:
            if not context.execute_async_v3(int(stream)):
                raise ModelFileError(f"{title(trt)} refuses to run products in {precision}: {logger.last_error()}.")
            cuda.call("cudaStreamSynchronize", stream)

        return _rate(run)
    finally:
        cuda.call("cudaStreamDestroy", stream)
        for pointer in pointers:
            cuda.call("cudaFree", pointer)


def cuda_peak(precision: str) -> float:
    """The same by ONNX Runtime's CUDA, in float32 or fp16."""
    import onnxruntime

    model = products(precision).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=[("CUDAExecutionProvider", {"use_tf32": "0"})])
    binding = session.io_binding()
    x = np.random.default_rng(1).standard_normal((SIZE, SIZE)).astype(np.float16)
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x, "cuda", 0))
    binding.bind_output("y", "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return _rate(run)


def _rate(run: Callable[[], None]) -> float:
    """Operations per second of the fastest repeat."""
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return PRODUCTS * 2.0 * SIZE**3 / best


def products(precision: str) -> Any:
    """An ONNX model: x half [SIZE, SIZE] times PRODUCTS matrices, in float32, half or Q/DQ; y half."""
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(0)
    kind = np.float32 if precision == "float32" else np.float16
    weights = (random.standard_normal((SIZE, SIZE)) / np.sqrt(SIZE)).astype(kind)
    constants = {"w": weights, "scale": np.array(0.02, kind), "zero": np.array(0, np.int8)}
    if precision == "int8":
        constants["w"] = (weights.astype(np.float32) * 1500).clip(-127, 127).astype(np.int8)
    nodes, last = [], "x"
    if precision == "float32":
        nodes.append(helper.make_node("Cast", ["x"], ["x32"], to=TensorProto.FLOAT))
        last = "x32"
    for index in range(PRODUCTS):
        factors = [last, "w"]
        if precision == "int8":
            nodes += [
                helper.make_node("QuantizeLinear", [last, "scale", "zero"], [f"q{index}"]),
                helper.make_node("DequantizeLinear", [f"q{index}", "scale", "zero"], [f"d{index}"]),
                helper.make_node("DequantizeLinear", ["w", "scale", "zero"], [f"w{index}"]),
            ]
            factors = [f"d{index}", f"w{index}"]
        nodes.append(helper.make_node("MatMul", factors, [f"p{index}"], f"product{index}"))
        last = f"p{index}"
    nodes.append(helper.make_node("Cast", [last], ["y"], to=TensorProto.FLOAT16))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [SIZE, SIZE]) for name in ("x", "y")]
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "products", infos[:1], infos[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
