"""Typed subnetworks as one checked graph, and that graph measured against its Keras model."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from blu_export import __version__
from blu_export.contract import Metadata
from blu_export.errors import ModelFileError, UsageError
from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from blu_export.data.dataset import Dataset
    from blu_export.evaluate.canvases import CanvasComparison
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.parity.verify import ParityReport
    from blu_export.quantize.precision import TypedSubnetworks
    from blu_export.runtime.base import Runner

PACKAGES = ("onnx", "tf2onnx", "tensorflow", "keras", "numpy", "onnxruntime")
"""Whose versions are noted in the file."""
RGB = 3
THE_DEMO_PHOTO = "the demo photo"
PARITY_PHOTOS = 8
"""Calibration photos that a file is compared on, at most."""


def parity_photos(calibration: Sequence[Any], images: Sequence[Any] | None = None) -> tuple[Sequence[Any], str]:
    """The photos to compare on, and which they are: ``images``, else some of ``calibration``, else the demo photo."""
    from blu_export.embedded import DEMO_PHOTO, embedded
    from blu_export.quantize.precision import spread

    if images is not None:
        return images, _count(images)
    if calibration:
        photos = spread(calibration, PARITY_PHOTOS)
        return photos, f"{len(photos)} of the {_count(calibration)} for calibration"
    return [embedded(DEMO_PHOTO)], THE_DEMO_PHOTO


def check_photos(which: str, spec: ModelSpec) -> None:
    """Raise UsageError where there is the demo photo alone, and the model does not take it."""
    if which == THE_DEMO_PHOTO and spec.image_channel_count != RGB:
        raise UsageError(
            f"The model takes {spec.image_channel_count} channels, and the demo photo has {RGB}.",
            "Name photos of the model's kind with --images, or leave the comparison out with --no-verify.",
        )


def _count(photos: Sequence[Any]) -> str:
    return f"{len(photos)} photo{'s' * (len(photos) != 1)}"


def checked_graph(
    typed: TypedSubnetworks, spec: ModelSpec, emulation: bool = False, compress_to_fp16: bool = False
) -> onnx.ModelProto:
    """Typed parts as one model that passed the ONNX checker, full shape inference and the graph checks.

    Raises:
        ModelFileError: it did not pass.
    """
    import onnx

    from blu_export.graph.checks import check_graph, without_weights
    from blu_export.graph.compression import compress
    from blu_export.quantize.precision import compose_typed

    graph = compose_typed(typed, spec, emulation)
    if compress_to_fp16:
        graph = compress(graph)
    try:
        onnx.checker.check_model(without_weights(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelFileError(
            f"The exported graph is not valid ONNX: {error}.", "This is a bug of blu: please report it."
        ) from error
    if not emulation:  # whose roundings are casts in the box arithmetic
        check_graph(graph, typed.target)
    add_metadata(
        graph,
        {
            Metadata.SPEC: spec.to_json(),
            Metadata.TARGET: typed.target,
            Metadata.PRECISION: typed.precision,
            Metadata.FALLBACK_LAYERS: json.dumps(dict(typed.fallback_layers)),
            Metadata.VERSIONS: json.dumps(_versions()),
        },
    )
    return graph


def measure_parity(
    model: MaskRCNN, graph: onnx.ModelProto, typed: TypedSubnetworks, spec: ModelSpec, photos: Iterable[Any]
) -> ParityReport:
    """The graph in ONNX Runtime against the Keras model it came from.

    The processor has no half-precision arithmetic, and ONNX Runtime widens such a graph to float32, so a
    TensorRT graph with half-precision layers is judged by its emulation, in which every rounding is explicit.
    """
    from blu_export.parity.verify import verify
    from blu_export.runtime.keras import KerasRunner

    with _on_processor(typed, spec, graph) as candidate:
        return verify(KerasRunner.of_model(model), candidate, photos)


def measure_canvas(
    typed: TypedSubnetworks, spec: ModelSpec, photos: Sequence[Any], annotated: Dataset | None = None
) -> CanvasComparison:
    """The network on its own canvas against itself on the square one, both in ONNX Runtime."""
    from blu_export.detector import Detector
    from blu_export.evaluate.canvases import compare_canvases, on_square

    with _on_processor(typed, spec) as own, _on_processor(typed, on_square(spec)) as square:
        return compare_canvases(Detector(own), Detector(square), photos, annotated)


def _on_processor(typed: TypedSubnetworks, spec: ModelSpec, graph: onnx.ModelProto | None = None) -> Runner:
    """Typed parts, or the graph already made of them, in ONNX Runtime; half-precision TensorRT ones as emulation."""
    from blu_export.runtime.onnx_file import parse_onnx
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

    emulate = typed.target == "tensorrt" and typed.precision != "float32"
    judged = graph if graph is not None and not emulate else checked_graph(typed, spec, emulation=emulate)
    runner = OnnxRuntimeRunner(parse_onnx(judged.SerializeToString(), "the exported graph"), "cpu")
    if emulate:
        runner.runtime = "emulation"
    return runner


def _versions() -> dict[str, str]:
    found = {"blu": __version__}
    for package in PACKAGES:
        for distribution in (package, f"{package}-cpu", f"{package}-gpu"):  # builds of one content
            with suppress(PackageNotFoundError):
                found.setdefault(package, version(distribution))
    return found


def add_metadata(graph: onnx.ModelProto, values: dict[str, str]) -> None:
    """Set entries of a model's metadata; others stay."""
    from onnx import helper

    helper.set_model_props(graph, {p.key: p.value for p in graph.metadata_props} | values)
