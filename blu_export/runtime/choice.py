"""Which of a model's files runs fastest here, and in which runtime.

Precisions of one model lie beside each other, as ``blu export onnx`` names them: ``coco.onnx``,
``coco.int8.onnx``, ``coco.fp16.onnx``. A reduced one may replace the exact one when it was made from
the same weights with the same settings and the parity that was measured at its export passed.

What is fastest was either measured on this machine by ``blu benchmark`` (``runtime.tuning``), or follows from
a rule. Nothing is measured while a model is being loaded.

``coco.fit.onnx`` beside ``coco.onnx`` is the same network on canvases that fit the photos. It may replace the
other where the average precision that was measured at its export is that of the square canvas, within CANVAS_AP.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from blu_export.contract import Metadata
from blu_export.embedded import embedded
from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.extras import install_command
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.onnx_file import OnnxFile, read_onnx, spec_of
from blu_export.runtime.onnxruntime import takes_gpu
from blu_export.runtime.tuning import RUNTIMES, Known, fit_path, label, precision_path, recall
from blu_export.spec import ModelSpec

MAX_LANES = 8
"""Each lane holds a network's worth of activations."""
CANVAS_AP = 0.003
"""Most that the average precision (0..1) on another canvas may differ from that on the square one."""
ALIKE = 1.05
"""Times the fastest runtime's seconds: another that takes no longer is as fast as far as one can measure."""


@dataclass(frozen=True)
class Choice:
    """A file, the runtime for it, and why these."""

    path: Path
    model: OnnxFile
    runtime: str
    lanes: int
    """Photos in the network at the same time, each on its share of the threads, where there are many to do."""
    why: str


def choose(path: Path, runtime: str, precision: str, device: str | None, measure: str = "") -> Choice:
    """What to load for a named .onnx file.

    Args:
        runtime: ``auto``, ``onnxruntime`` or ``openvino``.
        precision: ``file`` takes the file as it is, ``auto`` the fastest of its precisions that passed
            their parity, and a name that one: the file itself, or the one beside it. ``bf16`` is not a file
            of its own: the float32 one in OpenVINO.
        measure: the command that measures the runtimes, for a file that is not the user's own.

    Raises:
        ModelFileError: the file cannot be read, or there is no such precision of it.
        MissingDependencyError: neither runtime is installed.
        UsageError: the runtime does not compute in this precision.
    """
    if precision == "bf16":
        if runtime not in ("auto", "openvino"):
            raise UsageError(f"{runtime} does not compute in bf16.", "Use --runtime openvino.")
        path, model = _of_precision(path, "float32")
        return Choice(path, model, "openvino", min(usable_cores(), MAX_LANES), "what computes in bf16")
    runtimes = _installed() if runtime == "auto" else (runtime,)
    on_gpu = device != "cpu" and runtime != "openvino" and (device is not None or takes_gpu())
    if on_gpu:
        runtimes = ("onnxruntime",)
    if precision == "auto":
        files = {path: read_onnx(path)} | dict(stand_ins(path, on_gpu))
    else:
        path, model = _of_precision(path, precision)
        files = {path: model}
    candidates = [(file, name) for file in files for name in runtimes]
    known = Known() if on_gpu else recall(path)
    if len(candidates) == 1:
        chosen, why = candidates[0], "asked for" if runtime != "auto" else "the only one that fits here"
    elif all(label(*candidate) in known.seconds for candidate in candidates):
        fastest = min(candidates, key=lambda candidate: known.seconds[label(*candidate)])
        limit = ALIKE * known.seconds[label(*fastest)]
        # Candidates of a file are in the rule's order: of runtimes that are alike, the one that starts first.
        chosen = next(c for c in candidates if c[0] == fastest[0] and known.seconds[label(*c)] <= limit)
        how_fast = "the fastest" if chosen == fastest else f"as fast as {fastest[1]}, and quicker to start,"
        why = f"{how_fast} here, as blu benchmark measured on {known.day}"
    else:
        chosen = (list(files)[-1], runtimes[0])
        named = "blu benchmark" if _is_embedded(path) else f"blu benchmark {shlex.quote(os.fspath(path))}"
        measure = measure or named
        why = f"usually the fastest for {files[chosen[0]].precision}; {measure} measures it here"
    if chosen[0] != path:
        why += f"; {chosen[0].name} replaces {path.name}, {_parity(files[chosen[0]])}"
        if fit_path(path) in files and chosen[0].name.startswith(fit_path(path).stem):
            changes = _canvas_changes(files[fit_path(path)])
            why += f", AP {' and '.join(f'{100 * v:+.1f} ({kind})' for kind, v in changes.items())} for its canvas"
    # One photo a core was the faster way wherever it was measured (docs/performance.md).
    lanes = 1 if on_gpu else known.lanes.get(label(*chosen), min(usable_cores(), MAX_LANES))
    return Choice(chosen[0], files[chosen[0]], chosen[1], lanes, why)


def stand_ins(path: Path, on_gpu: bool = False) -> Iterator[tuple[Path, OnnxFile]]:
    """What lies beside a float32 file and may replace it, the fastest last.

    The reduced precision is half on a GPU, else int8: a processor computes half in float32, slower than the exact
    file, and less exact, and ONNX Runtime has no int8 convolution for GPUs. Then come the same on canvases that fit.
    """
    model = read_onnx(path)
    yield from _reduced(path, model, on_gpu)
    beside = fit_path(path)
    if model.precision == "float32" and beside != path and beside.is_file():
        fit = read_onnx(beside)
        if canvas_can_replace(fit, spec_of(fit, os.fspath(beside)), spec_of(model, os.fspath(path))):
            yield beside, fit
            yield from _reduced(beside, fit, on_gpu)


def _reduced(path: Path, model: OnnxFile, on_gpu: bool) -> Iterator[tuple[Path, OnnxFile]]:
    reduced = "fp16" if on_gpu else "int8"
    beside = precision_path(path, reduced)
    if model.precision == "float32" and beside.is_file():
        other = read_onnx(beside)
        specs = spec_of(other, os.fspath(beside)), spec_of(model, os.fspath(path))
        if other.precision == reduced and can_replace(other, *specs):
            yield beside, other


def can_replace(model: OnnxFile, spec: ModelSpec, exact: ModelSpec) -> bool:
    """Whether a reduced model was made from the same weights and settings, and its parity passed."""
    parity = model.json_metadata(Metadata.PARITY)
    passed = isinstance(parity, dict) and parity.get("passed") is True
    known = exact.provenance.get("weights_sha256") is not None
    return (
        passed and known and _same_model(spec, exact) and model.metadata.get(Metadata.TARGET, "portable") == "portable"
    )


def canvas_can_replace(model: OnnxFile, spec: ModelSpec, square: ModelSpec) -> bool:
    """Whether a model on canvases that fit is the square one's, and finds as well as it on annotated photos."""
    same_canvas = spec.replace(image_resize_mode=square.image_resize_mode)
    return (
        (spec.image_resize_mode, square.image_resize_mode) == ("fit", "square")
        and can_replace(model, same_canvas, square)
        and all(abs(change) <= CANVAS_AP for change in _canvas_changes(model).values() or [CANVAS_AP + 1])
    )


def _canvas_changes(model: OnnxFile) -> dict[str, float]:
    """Average precision (0..1) of boxes and masks above the square canvas's; nothing where it was not measured."""
    found = model.json_metadata(Metadata.CANVAS)
    try:
        return {kind: float(found["average_precision"][kind]["delta"]) for kind in ("box", "mask")}
    except (KeyError, TypeError, ValueError):
        return {}


def _same_model(a: ModelSpec, b: ModelSpec) -> bool:
    weights = [spec.provenance.get("weights_sha256") for spec in (a, b)]
    return weights[0] == weights[1] and a.replace(provenance={}) == b.replace(provenance={})


def _of_precision(path: Path, precision: str) -> tuple[Path, OnnxFile]:
    model = read_onnx(path)
    if precision in ("file", model.precision):
        return path, model
    beside = precision_path(path, precision)
    write_it = f"Write it with: {_export_command(path, model, precision, beside)}"
    if not beside.is_file():
        raise ModelFileError(
            f"{path} is a {model.precision} model, not {precision}, and there is no {beside.name} beside it.", write_it
        )
    other = read_onnx(beside)
    if other.precision != precision:
        raise ModelFileError(f"{beside} is a {other.precision} model, not {precision}.", write_it)
    if not _same_model(spec_of(other, os.fspath(beside)), spec_of(model, os.fspath(path))):
        raise ModelFileError(f"{beside} was made from other weights or settings than {path}.", write_it)
    return beside, other


def _export_command(path: Path, model: OnnxFile, precision: str, output: Path) -> str:
    """What writes another precision of a model."""
    command = ["blu", "export", "onnx"]
    if not _is_embedded(path):
        command += ["--weights", spec_of(model, os.fspath(path)).provenance.get("weights_file", "WEIGHTS.h5")]
    if precision != "float32":
        command += [f"--{precision}", "--calibration", "PHOTOS"]
    return shlex.join([*command, "-o", os.fspath(output)])


def _is_embedded(path: Path) -> bool:
    try:
        return path.resolve() == embedded().resolve()
    except ModelFileError:  # this installation has none
        return False


def _installed() -> tuple[str, ...]:
    installed = tuple(name for name in RUNTIMES if find_spec(name) is not None)
    if not installed:
        raise MissingDependencyError(
            "Neither ONNX Runtime nor OpenVINO is installed.", f"Install them with: {install_command('cpu')}"
        )
    return installed


def _parity(model: OnnxFile) -> str:
    parity = model.json_metadata(Metadata.PARITY)
    return f"{parity['matched']} of {parity['instances']} instances matched at its export"
