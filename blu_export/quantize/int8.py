"""int8 for a subnetwork: Q/DQ nodes with ranges from real photos, by ONNX Runtime's quantizer.

Two forms, since two kinds of hardware want different things. Processors multiply unsigned activations
by signed weights and fuse a layer with the quantization of its output; without VNNI they add pairs of products in
16 bits, so weights have 7 bits there. TensorRT wants symmetric scales, biases in floating point, and no
quantization after a layer unless the next one needs it.
"""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from blu_export.extras import import_extra
from blu_export.graph.builder import IR_VERSIONS
from blu_export.quantize.half import HALF_SCALES_OPSET
from blu_export.quantize.sensitivity import LayerError, Rounded, layer_errors

METHODS = ("minmax", "percentile", "entropy")
"""How a range follows from what was seen; ``minmax`` keeps everything."""
QUANTIZED = ["Conv", "Gemm"]
INT8_LARGEST = 127
SMALLEST_SCALE = 2.0**-17
"""For TensorRT scales become half: smaller ones keep too few bits there, and those of dead channels would be zero."""


def quantize(
    part: onnx.ModelProto,
    samples: Sequence[NDArray[np.float32]],
    target: str,
    method: str = "minmax",
    exclude: Collection[str] = (),
    ranges: Path | None = None,
) -> onnx.ModelProto:
    """A float32 part with Q/DQ nodes: weights per channel, activations per tensor.

    Args:
        samples: inputs of the part; ranges are taken from them.
        target: ``portable`` or ``tensorrt``, which has other rules (see above).
        method: one of METHODS.
        exclude: names of nodes that stay as they are.
        ranges: a file that keeps the ranges for the next call with the same part, samples and method.
    """
    quantization = import_extra("onnxruntime.quantization")
    part = at_opset(part, HALF_SCALES_OPSET)
    given = onnx.ModelProto()
    given.CopyFrom(part)  # the quantizer moves the weights of what it is given out of it
    # The stride collects one sample at a time, with every method: histograms need all tensors of a sample.
    options: dict[str, Any] = {"CalibStridedMinMax": 1, "WeightSymmetric": True}
    activation = quantization.QuantType.QUInt8
    if target == "tensorrt":
        activation = quantization.QuantType.QInt8
        options |= {
            "ActivationSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": QUANTIZED,
            "QDQKeepRemovableActivations": True,
            "MinimumRealRange": 2 * INT8_LARGEST * SMALLEST_SCALE,
        }
    methods = quantization.CalibrationMethod
    reader = _reader(quantization, part.graph.input[0].name, samples)
    with tempfile.TemporaryDirectory(prefix="blu-int8-") as folder, warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # about the quantizer's own use of NumPy
        path = Path(folder) / "part.onnx"
        quantization.quantize_static(
            given,
            path,
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            per_channel=True,
            reduce_range=target == "portable",
            activation_type=activation,
            weight_type=quantization.QuantType.QInt8,
            nodes_to_exclude=list(exclude),
            calibrate_method={"minmax": methods.MinMax, "percentile": methods.Percentile, "entropy": methods.Entropy}[
                method
            ],
            extra_options=options,
            calibration_cache_path=ranges,
        )
        return _named(onnx.load(path), part)


def at_opset(part: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A subnetwork under a later operator set: none of its operators differ between 17 and 22."""
    if part.opset_import[0].version >= opset:
        return part
    copy = onnx.ModelProto()
    copy.CopyFrom(part)
    copy.opset_import[0].version = opset
    copy.ir_version = IR_VERSIONS[opset]
    return copy


def int8_costs(
    part: onnx.ModelProto, quantized: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]
) -> list[LayerError]:
    """What int8 costs each layer: a float32 part and the same part after ``quantize``."""
    tensors = {t.name: numpy_helper.to_array(t) for t in quantized.graph.initializer}
    makers = {name: node for node in quantized.graph.node for name in node.output}
    layers = {node.name: node for node in quantized.graph.node}

    def rounded(node: onnx.NodeProto) -> Rounded:
        new_nodes: list[onnx.NodeProto] = []
        constants: list[onnx.TensorProto] = []
        names: list[str] = []
        for place, (name, found) in enumerate(zip(node.input, layers[node.name].input, strict=True)):
            maker = makers.get(found)
            if maker is None or maker.op_type != "DequantizeLinear" or place > 1:
                names.append(name)  # not quantized, or a bias, which costs nothing to speak of
                continue
            label = f"{node.name}/rounded{place}"
            names.append(label)
            if maker.input[0] in tensors:
                constants.append(numpy_helper.from_array(_dequantized(maker, tensors), label))
                continue
            scale, zero = (f"{label}/{n}" for n in ("scale", "zero"))
            constants += [
                numpy_helper.from_array(tensors[maker.input[1]], scale),
                numpy_helper.from_array(tensors[maker.input[2]], zero),
            ]
            new_nodes += [
                helper.make_node("QuantizeLinear", [name, scale, zero], [f"{label}/q"]),
                helper.make_node("DequantizeLinear", [f"{label}/q", scale, zero], [label]),
            ]
        return new_nodes, constants, names

    return layer_errors(part, samples, rounded)


def _dequantized(node: onnx.NodeProto, tensors: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    values, scale = tensors[node.input[0]].astype(np.float32), tensors[node.input[1]]
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.ndim:
        shape = [1] * values.ndim
        shape[axis] = -1
        scale = scale.reshape(shape)
    return np.asarray(values * scale, np.float32)


def _named(quantized: onnx.ModelProto, part: onnx.ModelProto) -> onnx.ModelProto:
    """The quantizer's file with every name under the part's prefix, and the part's inputs and outputs."""
    prefix = f"{part.graph.name}/"
    graph = quantized.graph
    for number, node in enumerate(graph.node):
        if not node.name.startswith(prefix):
            node.name = f"{prefix}{node.name or f'{node.op_type}_{number}'}"
    names = {t.name: f"{prefix}{t.name}" for t in graph.initializer if not t.name.startswith(prefix)}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
    plain = helper.make_graph(
        graph.node, part.graph.name, part.graph.input, part.graph.output, graph.initializer
    )  # fmt: skip
    opset = part.opset_import[0].version
    return helper.make_model(
        plain, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSIONS[opset], producer_name="blu"
    )


def _reader(quantization: Any, name: str, samples: Sequence[NDArray[np.float32]]) -> Any:
    class Reader(quantization.CalibrationDataReader):
        """The samples from ``start_index`` to ``end_index``, one after the other."""

        def __init__(self) -> None:
            self._left = iter(samples)

        def __len__(self) -> int:
            return len(samples)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._left = iter(samples[start_index:end_index])

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            sample = next(self._left, None)
            return None if sample is None else {name: sample}

    return Reader()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's remarks: on the root logger, what was done before the export; on stdout, its steps."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
