"""Which learned layers are in half or int8, and which are not: what the engine inspector says of an engine."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from blu_export.errors import CheckFailedError
from blu_export.tensorrt.sidecar import UNKNOWN, Batch, Canvases

if TYPE_CHECKING:
    import tensorrt

REDUCED_SHARE = 0.95
"""At least this share of the learned layers must be in half or int8 in an fp16 or int8 engine."""

_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_KINDS = (("int8", r"int8|\bi8"), ("half", r"half|fp16|float16|f16|h\d{3,}"), ("float32", r"float|fp32|f32|s\d{3,}"))
"""Kind -> how formats, weights and kernel names spell it; the first that fits."""


@dataclass(frozen=True)
class LayerReport:
    """Kind of each learned layer: ``half``, ``int8``, ``float32``, or ``unknown`` where nothing says it."""

    kinds: Mapping[str, str]

    @property
    def share(self) -> float | str:
        """Share in half or int8; ``unknown`` when too few layers are known to tell."""
        reduced = sum(kind in ("half", "int8") for kind in self.kinds.values())
        silent = sum(kind == UNKNOWN for kind in self.kinds.values())
        total = len(self.kinds)
        if not total or silent > total * (1 - REDUCED_SHARE):
            return UNKNOWN
        return reduced / total

    def note(self) -> str:
        """How the layers are spread over kinds."""
        counts = {kind: sum(k == kind for k in self.kinds.values()) for kind in ("int8", "half", "float32", UNKNOWN)}
        return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)

    def require(self, fix: str) -> None:
        """Raise CheckFailedError, with this fix, when too many layers are in float32; it lists them."""
        full = [name for name, kind in self.kinds.items() if kind == "float32"]
        if len(full) > len(self.kinds) * (1 - REDUCED_SHARE):
            raise CheckFailedError(
                f"{len(full)} of {len(self.kinds)} learned layers are in float32, which is more than "
                f"{1 - REDUCED_SHARE:.0%}: {', '.join(full)}.",
                fix,
            )


def inspect(
    trt: ModuleType, engine: tensorrt.ICudaEngine, canvases: Canvases, batch: Batch, layers: Collection[str]
) -> LayerReport:
    """Ask the inspector of a loaded engine.

    Args:
        engine: built with detailed profiling verbosity.
        layers: names of the ONNX nodes with weights.
    """
    inspector: tensorrt.EngineInspector = engine.create_engine_inspector()
    context: tensorrt.IExecutionContext | None = engine.create_execution_context()
    if context is not None:  # formats of dynamic shapes are shown for a context's shapes only
        context.set_input_shape("canvas", (batch.best, *canvases.best, engine.get_tensor_shape("canvas")[3]))
        context.set_input_shape("window", (batch.best, 4))
        inspector.execution_context = context
    return read_report(inspector.get_engine_information(trt.LayerInformationFormat.JSON), layers)


def read_report(text: str, layers: Collection[str]) -> LayerReport:
    """The kinds in an inspector's JSON.

    A learned layer is found by its ONNX name, in an engine layer's metadata or among the names of the
    layers fused into it. Its kind is that of its kernel's inputs; where formats are not shown, that of its weights
    or, last, of its kernel's name.
    """
    kinds = dict.fromkeys(layers, UNKNOWN)
    for row in json.loads(text).get("Layers", []):
        if not isinstance(row, dict):  # names only: built without detailed verbosity
            continue
        if row.get("LayerType") in ("Reformat", "NoOp", "Constant"):
            continue
        names = set(_NODE.findall(str(row.get("Metadata", ""))))
        names |= {part.strip() for part in str(row.get("Name", "")).split(" + ")}
        found = names.intersection(kinds)
        # A block that holds several layers shows its own ends only, not what happens inside.
        if not found or (kind := _kind(row)) == UNKNOWN or str(row.get("LayerType", "")).lower().startswith("myelin"):
            continue
        for name in found:
            kinds[name] = kind
    return LayerReport(kinds)


def _kind(row: Mapping[str, Any]) -> str:
    inputs = [str(tensor.get("Format/Datatype", "")) for tensor in row.get("Inputs", []) if isinstance(tensor, dict)]
    weights = row.get("Weights")
    shown = [*inputs, str(weights.get("Type", "")) if isinstance(weights, dict) else "", str(row.get("TacticName", ""))]
    for text in shown:
        for kind, pattern in _KINDS:
            if "N/A" not in text and re.search(pattern, text, re.IGNORECASE):
                return kind
    return UNKNOWN
