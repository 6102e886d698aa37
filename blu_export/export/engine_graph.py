"""From the ONNX file that a user has to the typed TensorRT graph that a builder takes.

``blu export onnx`` writes portable files, whose NMS operator TensorRT does not build. No second export is
needed: the subnetworks are taken out again, typed, and composed for TensorRT.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export.contract import Metadata
from blu_export.errors import UsageError
from blu_export.runtime import WEIGHT_SUFFIXES
from blu_export.runtime.onnx_file import OnnxFile, parse_onnx, read_onnx, spec_of
from blu_export.spec import ModelSpec, canvas_settings
from blu_export.tensorrt.inspector import LayerReport
from blu_export.tensorrt.sidecar import UNKNOWN

if TYPE_CHECKING:
    import onnx

    from blu_export.parity.verify import ParityReport
    from blu_export.quantize.precision import TypedSubnetworks

FEW_PHOTOS = 8
"""With fewer, int8 ranges are a guess, which is said."""
VERIFIED_PHOTOS = 4
"""Photos that the emulation is compared on: it runs on the processor, at seconds each."""


@dataclass(frozen=True)
class Prepared:
    """A graph for the builder."""

    source: OnnxFile
    source_path: Path
    source_sha256: str
    spec: ModelSpec
    precision: str
    model: onnx.ModelProto
    """Target ``tensorrt``, its subnetworks in ``precision``."""
    fallback_layers: dict[str, str] = field(default_factory=dict)
    """Layers that are not in ``precision`` -> why."""
    notes: tuple[str, ...] = ()
    """What people should know about the typing."""
    emulation: onnx.ModelProto | None = None
    """The model in float32 with its roundings explicit; None where the source is the model."""

    @property
    def layers(self) -> LayerReport:
        """Kind of each learned layer as the graph asks for it: that of its weights."""
        from onnx import TensorProto

        from blu_export.graph.checks import LEARNED
        from blu_export.quantize.sensitivity import WEIGHTED

        graph = self.model.graph
        kinds = {t.name: "half" if t.data_type == TensorProto.FLOAT16 else "float32" for t in graph.initializer}
        kinds |= {n.output[0]: "int8" for n in graph.node if n.op_type == "DequantizeLinear"}
        layers = [n for n in graph.node if n.op_type in WEIGHTED and n.name.startswith(LEARNED)]
        return LayerReport({n.name: kinds.get(n.input[1], UNKNOWN) for n in layers})

    @property
    def names(self) -> set[str]:
        """Names of all nodes, those of loop bodies included."""
        bodies = [a.g.node for n in self.model.graph.node for a in n.attribute if a.HasField("g")]
        return {n.name for n in itertools.chain(self.model.graph.node, *bodies)}

    def verify(self, photos: Iterable[Any]) -> ParityReport:
        """Compare the graph, run on the processor with its roundings explicit, with the source file."""
        from blu_export.parity.verify import verify
        from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

        assert self.emulation is not None
        candidate = parse_onnx(self.emulation.SerializeToString(), "emulation")
        with (
            OnnxRuntimeRunner(self.source, "cpu", source=os.fspath(self.source_path)) as first,
            OnnxRuntimeRunner(candidate, "cpu", source="emulation") as second,
        ):
            second.runtime = "emulation"
            return verify(first, second, itertools.islice(photos, VERIFIED_PHOTOS))


def prepare(
    path: str | os.PathLike[str],
    precision: str,
    photos: Iterable[Any],
    method: str = "minmax",
    canvas: str | None = None,
) -> Prepared:
    """Read an exported model and make the graph for the builder.

    Args:
        path: portable or for TensorRT, as ``blu export onnx`` writes it; float32, or in ``precision`` already.
        photos: what ``image.decode`` takes: ranges and costs are measured on them. Not looked at where
            the file is in ``precision`` already.
        method: see ``precision.apply_precision``.
        canvas: another one than the file's: ``fit``, ``square``, ``576x1024``. The network is the same.

    Raises:
        ModelFileError: not a file that blu exported.
        UsageError: it is of Keras, or cannot be brought into this precision.
    """
    import onnx

    from blu_export.graph.checks import check_graph
    from blu_export.graph.split import split
    from blu_export.quantize.precision import TypedSubnetworks, apply_precision, canvases, compose_typed

    path = Path(path)
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        raise UsageError(
            f"{path} is a file of Keras; engines are built from ONNX.", f"Export it: blu export onnx --weights {path}"
        )
    source = read_onnx(path)
    named = spec_of(source, str(path))
    spec = named if canvas is None else named.with_settings(canvas_settings(canvas))
    found, target = source.precision, source.metadata.get(Metadata.TARGET, "portable")
    sha256 = hashlib.sha256(source.data).hexdigest()
    if found not in ("float32", precision):
        raise UsageError(
            f"{path} is {found}, and cannot become {precision}.", "Name the float32 file that it was made from."
        )
    model = onnx.load_from_string(source.data)
    if found == precision and target == "tensorrt" and spec == named:
        check_graph(model, "tensorrt")
        return Prepared(
            source, path, sha256, spec, precision, model, source.json_metadata(Metadata.FALLBACK_LAYERS) or {}
        )
    if found == "int8":
        raise UsageError(
            f"{path} is quantized for processors, whose int8 differs from TensorRT's.",
            "Name the float32 file that it was made from.",
        )
    parts = split(model, spec)
    if spec != named:
        source = _on_canvas(parts, spec, source)
    if found == precision:
        typed = TypedSubnetworks(parts, precision, "tensorrt", source.json_metadata(Metadata.FALLBACK_LAYERS) or {})
    else:
        typed = apply_precision(parts, spec, precision, "tensorrt", canvases(photos, spec), method)
    composed = compose_typed(typed, spec)
    check_graph(composed, "tensorrt")
    _describe(composed, spec, precision, typed.fallback_layers)
    emulation = compose_typed(typed, spec, emulation=True)
    _describe(emulation, spec, precision, typed.fallback_layers)
    notes = tuple(typed.notes() if found != precision else ()) + _few(typed, precision)
    return Prepared(source, path, sha256, spec, precision, composed, dict(typed.fallback_layers), notes, emulation)


def _on_canvas(parts: Mapping[str, onnx.ModelProto], spec: ModelSpec, source: OnnxFile) -> OnnxFile:
    """The file on another canvas: what the engine is compared with."""
    from blu_export.graph.compose import compose

    model = compose(parts, spec)
    _describe(model, spec, source.precision, source.json_metadata(Metadata.FALLBACK_LAYERS) or {}, "portable")
    return parse_onnx(model.SerializeToString(), "the file on another canvas")


def _few(typed: TypedSubnetworks, precision: str) -> tuple[str, ...]:
    if precision == "int8" and 0 < typed.photos < FEW_PHOTOS:
        return (f"ranges from so few photos are a guess: give {FEW_PHOTOS} or more with --calibration",)
    return ()


def _describe(
    model: onnx.ModelProto, spec: ModelSpec, precision: str, fallback_layers: Any, target: str = "tensorrt"
) -> None:
    from onnx import helper

    helper.set_model_props(
        model,
        {
            Metadata.SPEC: spec.to_json(),
            Metadata.TARGET: target,
            Metadata.PRECISION: precision,
            Metadata.FALLBACK_LAYERS: json.dumps(dict(fallback_layers)),
        },
    )
