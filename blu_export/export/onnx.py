"""From a weights file to a checked ONNX file: the whole of ``blu export onnx``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export import __version__
from blu_export.contract import Metadata
from blu_export.errors import CheckFailedError, ModelFileError, UsageError
from blu_export.extras import import_extra
from blu_export.files import atomic_write, require_writable
from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from blu_export.data.dataset import Dataset
    from blu_export.evaluate.canvases import CanvasComparison
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.model.report import WeightReport
    from blu_export.model.weights import Weights
    from blu_export.parity.verify import ParityReport
    from blu_export.quantize.precision import TypedSubnetworks
    from blu_export.runtime.base import Runner

DEFAULT_OPSET = 18
PACKAGES = ("onnx", "tf2onnx", "tensorflow", "keras", "numpy", "onnxruntime")
"""Whose versions are noted in the file."""
FAILED_SUFFIX = ".failed.onnx"
"""Of a file that did not pass its parity check; the asked name is left alone."""
PARITY_PHOTOS = 8
"""Calibration photos that a file is compared on, at most."""

CONVERTERS = {"direct": ("onnx", "h5py"), "tf2onnx": ("onnx", "h5py", "tensorflow", "keras", "tf2onnx")}
"""How the subnetworks become ONNX -> packages that it needs. A test holds both to the same outputs."""
NOT_COMPARED = "not compared with Keras: TensorFlow is not installed"

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Exported:
    """An ONNX file that was written, and what is known about it."""

    path: Path
    spec: ModelSpec
    target: str
    precision: str
    opset: int
    nodes: int
    """Nodes of the graph, loop bodies not included."""
    weights: WeightReport
    parity: ParityReport | None
    """None where it was not asked for."""
    kept: dict[str, str] = field(default_factory=dict)
    """Layers that are not in ``precision`` -> why."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each step took, in order."""


def export_onnx(
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    class_names: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    ignore_layers: Sequence[str] = (),
    config: str | os.PathLike[str] | None = None,
    converter: str = "direct",
    target: str = "portable",
    opset: int = DEFAULT_OPSET,
    precision: str = "float32",
    calibration: Iterable[Any] = (),
    method: str = "minmax",
    compress_to_fp16: bool = False,
    verify: bool = True,
    images: Iterable[Any] | None = None,
    annotated: Dataset | None = None,
    tell: Tell = lambda line: None,
) -> Exported:
    """Convert Keras weights, check the graph and its results, and write it.

    Args:
        weights: .h5 or .keras: Matterport's layout, any Keras 2 or 3 program's, or our own training's.
        output: the .onnx file. It is written whole or not at all.
        class_names, settings, ignore_layers, config: see ``model.given.Given``.
        converter: ``direct`` writes the subnetworks from the tensors; ``tf2onnx`` traces the Keras model.
        target: ``portable`` (ONNX Runtime, OpenVINO) or ``tensorrt``.
        opset: version of the ONNX operator set, one of graph.OPSETS; int8 raises it where it must.
        precision: of the subnetworks: ``float32``, ``fp16`` or ``int8``.
        calibration: photos that fp16 and int8 are measured on. Default: ``images``, or the demo photo.
        method: how int8 ranges are chosen, see ``precision.apply_precision``.
        compress_to_fp16: store the kernels in half and compute in float32, see ``storage.compress``.
        verify: compare the file with the Keras model, instance by instance.
        images: photos to compare on. Default: PARITY_PHOTOS of ``calibration``, or the demo photo.
        annotated: photos on which the average precision of a canvas other than the square one is compared with it.
        tell: takes a line about each step.

    Raises:
        ModelFileError: the weights cannot be read or do not fit; nothing is written.
        UsageError: names, settings, target, opset or precision are not possible.
        CheckFailedError: the results differ from the Keras model's by more than the tolerance of the
            precision; the file is then beside ``output``, under ``NAME.failed.onnx``.
        MissingDependencyError: a package of the extra ``export`` is not installed; of the extra ``train`` for
            ``tf2onnx``. Without TensorFlow the file is not compared, and says so.
    """
    _check_request(Path(output), target, opset, precision, converter)
    for package in CONVERTERS[converter]:
        import_extra(package)
    from blu_export.evaluate.canvases import has_own_canvas
    from blu_export.model.given import Given, assumed_line, backbone_line
    from blu_export.model.weights import check_weights, keras_model, read_weights
    from blu_export.quantize.precision import MOST_PHOTOS, apply_precision, canvases

    output, calibration = Path(output), list(calibration)
    photos, which = parity_photos(calibration, None if images is None else list(images))
    if compress_to_fp16 and (target, precision) != ("portable", "float32"):
        raise UsageError("Only a portable float32 file is compressed.", "Leave out --compress-to-fp16.")
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with step("read"):
        given = Given.of(class_names, settings, ignore_layers, config)
        stored = read_weights(weights)
        spec = stored.make_spec(given)
        report = check_weights(stored, spec, given.ignore_layers)
    made = {"blu_version": __version__, "converter": converter}
    spec = spec.replace(provenance={**spec.provenance, **made})
    read = f"read {stored.note or weights}: {spec.backbone}, {spec.num_classes} classes, {report.summary()}"
    notes = [*given.lines(), backbone_line(given, spec), assumed_line(spec)]
    for line in filter(None, [f"{read} ({seconds['read']:.1f} s)", *notes]):
        tell(line)
    reference = keras_model(stored, spec) if converter == "tf2onnx" or (verify and has_keras()) else None
    with step("convert"):
        parts = _subnetworks(stored, reference, spec, opset, converter)
    del stored  # its tensors are in the parts
    tell(f"converted by {converter} ({seconds['convert']:.1f} s)")
    if precision != "float32":
        tell(f"measuring layers for {precision}")
        if not calibration and images is None:
            tell(f"on the demo photo alone: give {MOST_PHOTOS} or more photos of your own with --calibration")
    with step("type"):
        measured_on = canvases(calibration or photos, spec) if precision != "float32" else ()
        typed = apply_precision(parts, spec, precision, target, measured_on, method)
    for note in typed.notes():
        tell(note)
    with step("compose"):
        graph = checked_graph(typed, spec, compress_to_fp16=compress_to_fp16)
    nodes, latest = len(graph.graph.node), graph.opset_import[0].version
    tell(f"checked: {nodes} nodes, opset {latest}, for {target} ({seconds['compose']:.1f} s)")
    parity = None
    if verify and reference is None:
        tell(NOT_COMPARED)
        _add_metadata(graph, {Metadata.PARITY: json.dumps({"not_compared": NOT_COMPARED})})
    elif verify and reference is not None:
        tell(f"verifying on {which}")
        with step("verify"):
            parity = measure_parity(reference, graph, typed, spec, photos)
        for line in parity.lines():
            tell(line)
        tell(f"verified ({seconds['verify']:.1f} s)")
        _add_metadata(graph, {Metadata.PARITY: json.dumps(parity.to_json())})
    if verify and has_own_canvas(spec):
        with step("compare canvases"):
            compared = measure_canvas(typed, spec, photos, annotated)
        for line in compared.lines():
            tell(line)
        _add_metadata(graph, {Metadata.CANVAS: json.dumps(compared.to_json())})
    passed = parity is None or parity.passed
    path = output if passed else output.with_name(output.name.removesuffix(".onnx") + FAILED_SUFFIX)
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    if parity is not None and not passed:
        raise _failure(parity, path, weights, precision)
    return Exported(path, spec, target, precision, latest, nodes, report, parity, dict(typed.kept), seconds)


def has_keras() -> bool:
    """Whether the Keras reference can run here."""
    return all(find_spec(package) is not None for package in ("tensorflow", "keras"))


def _subnetworks(
    weights: Weights, model: MaskRCNN | None, spec: ModelSpec, opset: int, converter: str
) -> dict[str, onnx.ModelProto]:
    if converter == "direct":
        from blu_export.model import direct

        return direct.subnetworks(weights.layers, spec, opset)
    from blu_export.export import learned

    assert model is not None
    return learned.subnetworks(model, opset)


def parity_photos(calibration: Sequence[Any], images: Sequence[Any] | None = None) -> tuple[Sequence[Any], str]:
    """The photos to compare on, and which they are: ``images``, else some of ``calibration``, else the demo photo."""
    from blu_export.embedded import DEMO_PHOTO, embedded
    from blu_export.quantize.precision import spread

    if images is not None:
        return images, _count(images)
    if calibration:
        photos = spread(calibration, PARITY_PHOTOS)
        return photos, f"{len(photos)} of the {_count(calibration)} for calibration"
    return [embedded(DEMO_PHOTO)], "the demo photo"


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
    _add_metadata(
        graph,
        {
            Metadata.SPEC: spec.to_json(),
            Metadata.TARGET: typed.target,
            Metadata.PRECISION: typed.precision,
            Metadata.FALLBACK_LAYERS: json.dumps(dict(typed.kept)),
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


def _check_request(output: Path, target: str, opset: int, precision: str, converter: str) -> None:
    """Refuse at once what would fail after a minute of conversion."""
    from blu_export.contract import TARGETS
    from blu_export.graph.builder import OPSETS
    from blu_export.quantize.precision import PRECISIONS

    for name, value, known in (
        ("target", target, TARGETS),
        ("opset", opset, OPSETS),
        ("precision", precision, PRECISIONS),
        ("converter", converter, tuple(CONVERTERS)),
    ):
        if value not in known:
            raise UsageError(f"There is no {name} {value}.", f"It must be one of {', '.join(map(str, known))}.")
    if output.suffix != ".onnx":
        raise UsageError(f"{output} is not a name for an ONNX file.", "Let it end in .onnx.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder.", "Name a file.")
    require_writable(output)


def _failure(parity: ParityReport, path: Path, weights: str | os.PathLike[str], precision: str) -> CheckFailedError:
    from blu_export.quantize.precision import MOST_PHOTOS

    if parity.total == 0:
        return CheckFailedError(
            f"Nothing was found on the photos, so nothing could be compared; the file is {path}.",
            "Give photos of what the model finds with --images, or --no-verify.",
        )
    failed = ", ".join(f"{check.name} {check.value:.4f}" for check in parity.checks if not check.passed)
    fix = f"See where they part with: blu verify {weights} {path} --stages"
    if precision != "float32":
        fix = (
            f"Give {MOST_PHOTOS} or more photos of what the model is for with --calibration, and with --images "
            f"others of them to compare on. {fix}"
        )
    return CheckFailedError(f"{path} differs from {weights} more than it may: {failed}.", fix)


def _versions() -> dict[str, str]:
    found = {"blu": __version__}
    for package in PACKAGES:
        for distribution in (package, f"{package}-cpu", f"{package}-gpu"):  # builds of one content
            with suppress(PackageNotFoundError):
                found.setdefault(package, version(distribution))
    return found


def _add_metadata(graph: onnx.ModelProto, values: dict[str, str]) -> None:
    from onnx import helper

    helper.set_model_props(graph, {p.key: p.value for p in graph.metadata_props} | values)
