"""Reduced precision: the subnetworks in half or int8, the box arithmetic as it is.

Types are given to the subnetworks before they are composed, since converters break a graph that holds
a Loop. What stays float32 is decided by measurement on photos, and named.
"""

from __future__ import annotations

import tempfile
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from blu_export.errors import UsageError
from blu_export.graph.compose import compose
from blu_export.image import decode, mold
from blu_export.quantize.gptq import round_kernels
from blu_export.quantize.half import emulate, to_half
from blu_export.quantize.int8 import METHODS, at_opset, int8_costs, quantize
from blu_export.quantize.sensitivity import (
    WEIGHTED,
    LayerError,
    correct_biases,
    half_errors,
    output_error,
    outputs_of,
    sample_inputs,
    tensor_ranges,
)
from blu_export.spec import ModelSpec

PRECISIONS = ("float32", "fp16", "int8")
HALF_LARGEST = float(np.finfo(np.float16).max)
HALF_MARGIN = 4.0
"""Numbers this much larger than any that was seen on the photos must still fit into half."""
HALF_ERROR = 0.01
"""A layer that loses more than this (relative, RMS) in half stays float32; half's own rounding is 3e-4."""
INT8_ERROR = 0.1
"""A layer that loses more than this in int8 stays in the next better precision; 8 bits themselves cost 1 to 4 %."""
INT8_OUTPUT_ERROR = 0.05
"""More than this (relative, RMS) a part's outputs should not lose in int8: its leading layers stay better for that."""
NEAR = 1.1
"""Times the least loss that can be had: near enough."""
REARRANGING = ("Concat", "Reshape", "Sigmoid", "Transpose")
"""Operators between a layer that predicts and the part's output."""
LEADING = 0.35
"""At most this share of a part's layers stays float32 as leading ones: they see the most pixels and do little work."""
HALF_PHOTOS = 4
"""Photos that half precision is measured on: ranges of activations differ little between photos."""
MOST_PHOTOS = 32
"""Photos that are used of those given, spread evenly over those that are there."""

Photo = TypeVar("Photo")
Canvases = Sequence[tuple[NDArray[np.uint8], NDArray[np.float32]]]
"""(canvas uint8 [1, H, W, 3], window float32 [1, 4]) of each photo."""


@dataclass(frozen=True)
class TypedSubnetworks:
    """The subnetworks in a precision, and what was found on the way."""

    parts: dict[str, onnx.ModelProto]
    precision: str
    target: str
    fallback_layers: Mapping[str, str] = field(default_factory=dict)
    """Layer that is not in the asked precision -> why."""
    photos: int = 0
    """Photos that ranges and costs were measured on."""

    def emulation(self) -> dict[str, onnx.ModelProto]:
        """The parts in float32 with every rounding to half made explicit: what a processor can judge.

        Parts without half-precision tensors come back as they are.
        """
        return {name: emulate(part) if _has_half(part) else part for name, part in self.parts.items()}

    def notes(self) -> list[str]:
        """What people should know: fallback layers, and from how many photos that follows."""
        if self.precision == "float32":
            return []
        fallback = [f"not in {self.precision}: {name} ({why})" for name, why in self.fallback_layers.items()]
        photos = "1 photo" if self.photos == 1 else f"{self.photos} photos"
        return [*(fallback or [f"every layer is in {self.precision}"]), f"measured on {photos}"]


def canvases(photos: Iterable[Any], spec: ModelSpec) -> Canvases:
    """Photos as the graph takes them, at most MOST_PHOTOS, evenly spread.

    Raises:
        ImageError: one cannot be read.
    """
    molded = (mold(decode(photo, channels=spec.image_channel_count), spec) for photo in spread(list(photos)))
    return [(m.canvas[None], m.window[None]) for m in molded]


def spread(photos: Sequence[Photo], most: int = MOST_PHOTOS) -> list[Photo]:
    """At most ``count`` of them, evenly spaced."""
    count = min(len(photos), most)
    return [photos[i * len(photos) // count] for i in range(count)]


def apply_precision(
    parts: Mapping[str, onnx.ModelProto],
    spec: ModelSpec,
    precision: str,
    target: str,
    canvases: Canvases,
    method: str = "minmax",
) -> TypedSubnetworks:
    """Give float32 subnetworks a precision.

    ``fp16``: half, except layers that overflow or lose accuracy. ``int8``: convolutions and products in
    Q/DQ; what lies between them is half for TensorRT and float32 for processors.

    Args:
        parts: float32, from ``subnetworks`` or ``split``.
        target: ``portable`` or ``tensorrt``.
        canvases: photos to measure on; all of them for int8, the first HALF_PHOTOS for half.
        method: how int8 ranges are chosen, one of int8.METHODS.

    Raises:
        UsageError: no such precision or method, or no photos.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision '{precision}'.", f"Precisions are {', '.join(PRECISIONS)}.")
    if method not in METHODS:
        raise UsageError(f"There is no calibration method '{method}'.", f"Methods are {', '.join(METHODS)}.")
    if precision == "float32":
        return TypedSubnetworks(dict(parts), precision, target)
    if not canvases:
        raise UsageError(f"{precision} needs photos to measure on.", "Name a folder of them with --calibration.")
    chosen = canvases if precision == "int8" else canvases[:HALF_PHOTOS]
    samples = sample_inputs(parts, spec, chosen)
    few = {part: arrays[:HALF_PHOTOS] for part, arrays in samples.items()}
    fallback: dict[str, str] = {}
    if precision == "fp16" or target == "tensorrt":
        for name, part in parts.items():
            fallback |= unfit_for_half(part, few[name])
    if precision == "fp16":
        half = {name: to_half(round_kernels(part, few[name], fallback), fallback) for name, part in parts.items()}
        return TypedSubnetworks(half, precision, target, fallback, len(chosen))
    found = dict(fallback)
    typed: dict[str, onnx.ModelProto] = {}
    for name, part in parts.items():
        quantized, worse = _int8(part, samples[name], target, method, fallback)
        typed[name] = to_half(quantized, fallback) if target == "tensorrt" else quantized
        found |= worse
    return TypedSubnetworks(typed, precision, target, found, len(chosen))


def unfit_for_half(part: onnx.ModelProto, samples: Sequence[NDArray[np.float32]]) -> dict[str, str]:
    """Nodes that must stay float32 -> why."""
    found: dict[str, str] = {}
    ranges = tensor_ranges(part, samples)
    for node in part.graph.node:
        largest = max((ranges.get(name, 0.0) for name in (*node.input, *node.output)), default=0.0)
        if not largest * HALF_MARGIN <= HALF_LARGEST:
            found[node.name] = f"numbers up to {largest:.3g}"
    for cost in half_errors(part, samples):
        if not cost.error <= HALF_ERROR:
            found.setdefault(cost.name, _loses(cost))
    return found


def compose_typed(typed: TypedSubnetworks, spec: ModelSpec, emulation: bool = False) -> onnx.ModelProto:
    """The composed model of typed parts, for their own target.

    Args:
        emulation: the float32 form in which every rounding is explicit (see TypedSubnetworks.emulation).
    """
    parts = typed.emulation() if emulation else typed.parts
    latest = max(part.opset_import[0].version for part in parts.values())
    return compose({name: at_opset(part, latest) for name, part in parts.items()}, spec, typed.target)


def _int8(
    part: onnx.ModelProto,
    samples: Sequence[NDArray[np.float32]],
    target: str,
    method: str,
    fallback: Mapping[str, str],
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """One part in int8, and the layers of it that are not -> why."""
    few = samples[:HALF_PHOTOS]
    with tempfile.TemporaryDirectory(prefix="blu-int8-") as folder:
        ranges = Path(folder) / "ranges.json"

        def typed_but(layers: Iterable[str], part: onnx.ModelProto = part) -> onnx.ModelProto:
            return quantize(part, samples, target, method, [*fallback, *layers], ranges)

        last = [name for name in predictors(part) if name not in fallback]
        costs = [cost for cost in int8_costs(part, typed_but(last), samples) if cost.name not in fallback]
        worse = dict.fromkeys(last, "what it makes are results") | {
            cost.name: _loses(cost) for cost in costs if not cost.error <= INT8_ERROR
        }
        for layer in leading_layers(part, few, lambda first: typed_but([*worse, *first])):
            worse.setdefault(layer, "its error would grow in the layers after it")
        shifts = {cost.name: cost.shift for cost in costs if cost.name not in worse}
        return typed_but(worse, correct_biases(part, shifts)), worse


def predictors(part: onnx.ModelProto) -> list[str]:
    """The layers whose outputs are a head's scores, deltas and masks: its last 1×1 convolutions and products.

    Eight bits of output divide the range of a delta into 255 steps, wider than what separates good boxes from very
    good ones; and these layers have so few outputs that they cost next to nothing. None of the trunk: the proposals are
    refined anyway (in eight bits they cost less than 0.1 points of AP), and its layers see every pixel.
    """
    if part.graph.name == "trunk":
        return []
    makers = {name: node for node in part.graph.node for name in node.output}
    shapes = {tensor.name: tensor.dims for tensor in part.graph.initializer}
    found: dict[str, None] = {}
    waiting = [output.name for output in part.graph.output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type in WEIGHTED:
            if all(side == 1 for side in shapes[node.input[1]][2:]):
                found[node.name] = None
        elif node.op_type in REARRANGING:
            waiting += node.input
    return list(found)


def leading_layers(
    part: onnx.ModelProto,
    samples: Sequence[NDArray[np.float32]],
    typed_but: Callable[[Sequence[str]], onnx.ModelProto],
) -> list[str]:
    """The layers at a part's front that have to stay better for its outputs to lose little: as few as will do.

    An error at the front goes through every layer after it. Where even LEADING of the layers do not bring the
    loss down to INT8_OUTPUT_ERROR, as few fall back as come near to what those would bring; where those do not
    halve it, the front is not the cause, and none falls back.

    Args:
        typed_but: makes the typed part in which the named layers are as before.
    """
    layers = [node.name for node in part.graph.node if node.op_type in WEIGHTED]
    exact = outputs_of(part, samples)

    def loss(count: int) -> float:
        return output_error(exact, outputs_of(typed_but(layers[:count]), samples))

    most = int(LEADING * len(layers))
    without = loss(0)
    if without <= INT8_OUTPUT_ERROR or (least := loss(most)) > without / 2:
        return []
    enough = max(INT8_OUTPUT_ERROR, NEAR * least)
    return layers[: bisect_left(range(most), 1, lo=1, key=lambda count: int(loss(count) <= enough))]


def _loses(cost: LayerError) -> str:
    return f"loses {cost.error:.1%} of its output" if np.isfinite(cost.error) else "overflows"


def _has_half(part: onnx.ModelProto) -> bool:
    kinds: list[Any] = [t.data_type for t in part.graph.initializer]
    kinds += [i.type.tensor_type.elem_type for i in part.graph.input]
    return onnx.TensorProto.FLOAT16 in kinds
