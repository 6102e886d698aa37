"""From a weights file to a checked ONNX file: the whole of ``blu export onnx``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export import __version__
from blu_export.contract import Metadata
from blu_export.errors import CheckFailedError
from blu_export.export.checked import (
    add_metadata,
    check_photos,
    checked_graph,
    measure_canvas,
    measure_parity,
    parity_photos,
)
from blu_export.export.options import CONVERTERS, ExportOptions, check_output
from blu_export.extras import import_extra
from blu_export.files import atomic_write
from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

    from blu_export.data.dataset import Dataset
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.model.report import WeightReport
    from blu_export.model.weights import Weights
    from blu_export.parity.verify import ParityReport

FAILED_SUFFIX = ".failed.onnx"
"""Of a file that did not pass its parity check; the asked name is left alone."""

NOT_COMPARED = "not compared with Keras: TensorFlow is not installed"

DEFAULTS = ExportOptions()

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
    fallback_layers: dict[str, str] = field(default_factory=dict)
    """Layers that are not in ``precision`` -> why."""
    seconds: dict[str, float] = field(default_factory=dict)
    """What each step took, in order."""


def export_onnx(
    weights: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: ExportOptions = DEFAULTS,
    *,
    calibration: Iterable[Any] = (),
    images: Iterable[Any] | None = None,
    annotated: Dataset | None = None,
    tell: Tell = lambda line: None,
) -> Exported:
    """Convert Keras weights, check the graph and its results, and write it.

    Args:
        weights: .h5 or .keras: Matterport's layout, any Keras 2 or 3 program's, or our own training's.
        output: the .onnx file. It is written whole or not at all.
        options: what the file is to be.
        calibration: photos that fp16 and int8 are measured on. Default: ``images``, or the demo photo.
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
    output, calibration = Path(output), list(calibration)
    options.check()
    check_output(output)
    for package in CONVERTERS[options.converter]:
        import_extra(package)
    from blu_export.evaluate.canvases import has_own_canvas
    from blu_export.model.given import Given, assumed_line, backbone_line
    from blu_export.model.weights import check_weights, keras_model, read_weights
    from blu_export.quantize.precision import MOST_PHOTOS, apply_precision, canvases

    target, precision, converter = options.target, options.precision, options.converter
    photos, which = parity_photos(calibration, None if images is None else list(images))
    seconds: dict[str, float] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - start

    with step("read"):
        given = Given.of(options.class_names, options.settings, options.ignore_layers, options.config)
        stored = read_weights(weights)
        spec = stored.make_spec(given)
        report = check_weights(stored, spec, given.ignore_layers)
    made = {"blu_version": __version__, "converter": converter}
    spec = spec.replace(provenance={**spec.provenance, **made})
    read = f"read {stored.note or weights}: {spec.backbone}, {spec.num_classes} classes, {report.summary()}"
    notes = [*given.lines(), backbone_line(given, spec), assumed_line(spec)]
    for line in filter(None, [f"{read} ({seconds['read']:.1f} s)", *notes]):
        tell(line)
    if precision != "float32" or (options.verify and has_keras()):
        check_photos(which, spec)
    reference = keras_model(stored, spec) if converter == "tf2onnx" or (options.verify and has_keras()) else None
    with step("convert"):
        parts = _subnetworks(stored, reference, spec, options.opset, converter)
    del stored  # its tensors are in the parts
    tell(f"converted by {converter} ({seconds['convert']:.1f} s)")
    if precision != "float32":
        tell(f"measuring layers for {precision}")
        if not calibration and images is None:
            tell(f"on the demo photo only: give {MOST_PHOTOS} or more photos of your own with --calibration")
    with step("type"):
        measured_on = canvases(calibration or photos, spec) if precision != "float32" else ()
        typed = apply_precision(parts, spec, precision, target, measured_on, options.method)
    for note in typed.notes():
        tell(note)
    with step("compose"):
        graph = checked_graph(typed, spec, compress_to_fp16=options.compress_to_fp16)
    nodes, latest = len(graph.graph.node), graph.opset_import[0].version
    tell(f"checked: {nodes} nodes, opset {latest}, for {target} ({seconds['compose']:.1f} s)")
    parity = None
    if options.verify and reference is None:
        tell(NOT_COMPARED)
        add_metadata(graph, {Metadata.PARITY: json.dumps({"not_compared": NOT_COMPARED})})
    elif options.verify and reference is not None:
        tell(f"verifying on {which}")
        with step("verify"):
            parity = measure_parity(reference, graph, typed, spec, photos)
        for line in parity.lines():
            tell(line)
        tell(f"verified ({seconds['verify']:.1f} s)")
        add_metadata(graph, {Metadata.PARITY: json.dumps(parity.to_json())})
    if options.verify and has_own_canvas(spec):
        with step("compare canvases"):
            compared = measure_canvas(typed, spec, photos, annotated)
        for line in compared.lines():
            tell(line)
        add_metadata(graph, {Metadata.CANVAS: json.dumps(compared.to_json())})
    passed = parity is None or parity.passed
    path = output if passed else output.with_name(output.name.removesuffix(".onnx") + FAILED_SUFFIX)
    with atomic_write(path) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    if parity is not None and not passed:
        raise _failure(parity, path, weights, precision)
    return Exported(path, spec, target, precision, latest, nodes, report, parity, dict(typed.fallback_layers), seconds)


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


def _failure(parity: ParityReport, path: Path, weights: str | os.PathLike[str], precision: str) -> CheckFailedError:
    from blu_export.quantize.precision import MOST_PHOTOS

    if parity.total == 0:
        return CheckFailedError(
            f"Nothing was found on the photos, so nothing could be compared; the file is {path}.",
            "Give photos of what the model finds with --images, or --no-verify.",
        )
    failed = ", ".join(f"{check.name} {check.value:.4f}" for check in parity.checks if not check.passed)
    fix = f"To find the first diverging stage, run: blu verify {weights} {path} --stages"
    if precision != "float32":
        fix = (
            f"Give {MOST_PHOTOS} or more photos of what the model is for with --calibration, and with --images "
            f"others of them to compare on. {fix}"
        )
    return CheckFailedError(f"{path} differs from {weights} more than it may: {failed}.", fix)
