"""``build_engine``: an ONNX file to an engine and its sidecar, with the checks in between."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from blu_export import __version__
from blu_export.errors import ImageError, MissingDependencyError, ModelFileError, UsageError
from blu_export.export.engine_graph import Prepared, prepare
from blu_export.extras import install_command
from blu_export.files import atomic_write, sha256_of
from blu_export.spec import ModelSpec
from blu_export.tensorrt.builder import BuildOptions, Progress, build, check_target, is_rtx, make_logger, title
from blu_export.tensorrt.cuda import Cuda, DeviceError
from blu_export.tensorrt.inspector import inspect
from blu_export.tensorrt.libraries import BUILDERS, is_installed, load_builder
from blu_export.tensorrt.sidecar import Batch, Canvases, Sidecar, sidecar_path
from blu_export.tensorrt.targets import THIS_GPU, Target, parse_target

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

DEFAULT_TARGET = "t4"
"""Where there is no GPU."""
DEFAULT_BATCH = Batch(1, 1, 8)
DEFAULT_METHOD = "minmax"
TURING = (7, 5)


@dataclass(frozen=True)
class Request:
    """What to build."""

    onnx: Path
    precision: str = "fp16"
    target: str | None = None
    """Card, capability, or ``this-gpu``; None is this GPU where there is one, else DEFAULT_TARGET."""
    builder: str = "auto"
    batch: Batch = DEFAULT_BATCH
    canvas: str | None = None
    """``fit``, ``square``, ``576x1024``; None: the file's."""
    workspace: int | None = None
    """Bytes; see BuildOptions."""
    timing_cache: Path | None = None
    level: int | None = None
    output: Path | None = None
    """Default: ``NAME.fp16.sm75.engine`` in the working folder."""
    calibration: tuple[str, ...] = ()
    """Where the photos come from, as it was typed; for ``rebuild_command``."""
    method: str = DEFAULT_METHOD
    verify: bool = True


@dataclass(frozen=True)
class Plan:
    """A request with its open questions answered."""

    target: Target
    builder: str
    why: str
    """Why this builder."""
    device: Cuda | None
    """The GPU of this machine."""

    @property
    def here(self) -> bool:
        """Whether the target is this machine's GPU."""
        return self.device is not None and self.device.capability == self.target.capability


def plan(request: Request, device: Cuda | None) -> Plan:
    """Decide target and builder.

    Args:
        device: the GPU of this machine; None where there is none.

    Raises:
        UsageError: no such target or builder, or one that cannot be combined with the options.
        MissingDependencyError: the builder, or the GPU that it needs, is not there.
    """
    if request.builder not in ("auto", *BUILDERS):
        raise UsageError(f"There is no builder '{request.builder}'.", f"Builders are auto, {', '.join(BUILDERS)}.")
    wanted = request.target or (THIS_GPU if device else DEFAULT_TARGET)
    if wanted != THIS_GPU:
        target = parse_target(wanted)
    elif device is None:
        raise DeviceError("There is no GPU here to build for.", "Name a card, for example --target t4.")
    else:
        target = Target("sm{}{}".format(*device.capability), device.capability)
    builder, why = request.builder, "asked for"
    if builder == "auto":
        builder, why = _choose(target, device)
    if builder == "tensorrt" and (device is None or device.capability != target.capability):
        here = f"this machine's is {device.name}" if device else "this machine has none"
        raise DeviceError(
            f"TensorRT builds for {target} on such a GPU only, and {here}.", "Use --builder tensorrt-rtx, or the GPU."
        )
    if builder == "tensorrt-rtx" and request.timing_cache is not None:
        raise UsageError(
            "TensorRT-RTX times nothing while it builds, so it has no timing cache.", "Leave --timing-cache out."
        )
    return Plan(target, builder, why, device)


def find_device() -> Cuda | None:
    """The first GPU of the machine; None where there is none, or no cuda-python to ask for it."""
    try:
        return Cuda()
    except MissingDependencyError as error:
        log.debug("no GPU: %s", error)
        return None


def build_engine(
    request: Request,
    photos: Iterable[Any],
    device: Cuda | None,
    say: Callable[[str], None],
    progress: Progress | None = None,
) -> tuple[Path, Sidecar]:
    """Build an engine, check it, and write it with its sidecar.

    Args:
        photos: what ``image.decode`` takes: to measure precision on, and to compare results on.
        device: see ``plan``.
        say: takes lines for people.

    Returns:
        The engine's path and its sidecar.

    Raises:
        CheckFailedError: the graph or the engine finds other things than the source file, or too many
            layers are in float32. Nothing is written.
        ModelFileError, UsageError, MissingDependencyError: see ``plan``, ``prepare`` and ``build``.
    """
    decided = plan(request, device)
    trt = load_builder(decided.builder)
    check_target(trt, decided.target.capability)
    say(f"{title(trt)} for {decided.target}: {decided.why}")
    if decided.builder == "tensorrt-rtx" and decided.target.capability == TURING and request.precision == "int8":
        say("  NVIDIA's support matrix of TensorRT-RTX names fp16 for Turing cards, and not int8: prefer --fp16")
    photos = list(photos)
    try:
        prepared = prepare(request.onnx, request.precision, photos, request.method, request.canvas)
    except ImageError as error:
        if request.calibration:
            raise
        raise UsageError(error.what, "Name photos of the model's kind with --calibration.") from error
    canvases = Canvases.of(prepared.spec, usual_canvas(photos, prepared.spec) if request.calibration else None)
    if not canvases.fixed:
        low, best, high = (f"{h}x{w}" for h, w in (canvases.smallest, canvases.best, canvases.largest))
        say(f"  canvases from {low} to {high}, best for {best}")
    for note in prepared.notes:
        say(f"  {note}")
    if request.precision != "float32":
        prepared.layers.require(
            f"They overflow or lose accuracy in {request.precision} on these photos: name others with --calibration, "
            "look at the weights, or build with --fp32."
        )
    emulation = None
    if request.verify and prepared.emulation is not None:
        report = prepared.verify(photos)
        for line in report.lines():
            say(f"  {line}")
        report.require()
        emulation = report.to_json()
    output = request.output or Path(
        f"{request.onnx.stem}.{request.precision}.{decided.target.sm}.engine"
    )  # fmt: skip
    options = BuildOptions(
        request.batch, canvases, decided.target.capability, request.workspace, request.timing_cache, request.level,
        prepared.spec.image_channel_count,
    )  # fmt: skip
    built = build(trt, prepared.model.SerializeToString(), options, prepared.names, progress)
    say(f"  built in {built.seconds:.0f} s, {built.log['warnings']} warnings")
    sidecar = Sidecar(
        engine_sha256="",
        onnx_sha256=prepared.source_sha256,
        onnx_name=request.onnx.name,
        spec=prepared.spec,
        builder=decided.builder,
        builder_version=trt.__version__,
        target=decided.target.name,
        capability=decided.target.capability,
        precision=request.precision,
        batch=request.batch,
        canvases=canvases,
        rebuild=rebuild_command(request, decided, output),
        built_on=device.name if device and decided.here else "",
        build_seconds=round(built.seconds, 1),
        fallback_layers=prepared.fallback_layers,
        typed_share=prepared.layers.share,
        log=built.log,
        emulation=emulation,
        blu_version=__version__,
    )
    if decided.here:
        sidecar = _checked_on_gpu(trt, built.engine, sidecar, prepared, request, photos, say)
    else:
        reason = f"there is no {decided.target} here: the engine was not loaded, inspected or run"
        say(f"  {reason}")
        sidecar = replace(sidecar, reduced_note=reason)
    with atomic_write(output) as temporary:
        temporary.write_bytes(built.engine)
    sidecar = replace(sidecar, engine_sha256=sha256_of(output))
    sidecar.write(output)
    return output, sidecar


def rebuild_command(request: Request, decided: Plan, output: Path) -> str:
    """The command that builds the same engine again."""
    flag = {"float32": "--fp32"}.get(request.precision, f"--{request.precision}")
    batch = request.batch
    words = ["blu", "build-engine", os.fspath(request.onnx), flag, "--target", decided.target.sm]
    words += ["--builder", decided.builder, "--batch", f"{batch.smallest},{batch.best},{batch.largest}"]
    if request.canvas is not None:
        words += ["--canvas", request.canvas]
    for source in request.calibration:
        words += ["--calibration", source]
    options = {
        "--calibration-method": request.method if request.method != DEFAULT_METHOD else None,
        "--workspace": request.workspace,
        "--timing-cache": request.timing_cache,
        "--level": request.level,
    }
    words += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return shlex.join([*words, *([] if request.verify else ["--no-verify"]), "-o", os.fspath(output)])


def usual_canvas(photos: Iterable[Any], spec: ModelSpec) -> tuple[int, int]:
    """(height, width) of the canvas that most of the photos have."""
    from blu_export.quantize.precision import canvases

    sizes = Counter(canvas.shape[1:3] for canvas, _ in canvases(photos, spec))
    (height, width), _ = sizes.most_common(1)[0]
    return height, width


def _choose(target: Target, device: Cuda | None) -> tuple[str, str]:
    """(builder, reason) for ``auto``."""
    if device is not None and device.capability == target.capability and is_installed("tensorrt"):
        return "tensorrt", f"{device.name} is here"
    here = "no such GPU is here" if device is None or device.capability != target.capability else "TensorRT is not"
    if is_installed("tensorrt-rtx"):
        return "tensorrt-rtx", f"{here}; this builder needs none"
    raise MissingDependencyError(
        f"{here.capitalize()}, and TensorRT-RTX, which builds without one, is not installed.",
        f"Install it with: {install_command('rtx')} (x86-64 Linux)",
    )


def _checked_on_gpu(
    trt: ModuleType,
    engine: bytes,
    sidecar: Sidecar,
    prepared: Prepared,
    request: Request,
    photos: list[Any],
    say: Callable[[str], None],
) -> Sidecar:
    """The sidecar with what the inspector and a run on this GPU show.

    Raises:
        CheckFailedError: a check did not pass.
    """
    from blu_export.parity.verify import verify
    from blu_export.quantize.precision import spread
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
    from blu_export.runtime.tensorrt import TensorRtRunner

    logger = make_logger(trt)
    runtime: tensorrt.Runtime = trt.Runtime(logger)
    loaded: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        raise ModelFileError(f"{title(trt)} does not load the engine that it built: {logger.last_error()}.")
    if request.precision != "float32" and not is_rtx(trt):
        report = inspect(trt, loaded, sidecar.canvases, request.batch, prepared.layers.kinds)
        say(f"  learned layers: {report.note()}")
        report.require("Build again with another --level, or report it: the file's types were not respected.")
        sidecar = replace(sidecar, reduced_share=report.share, reduced_note=report.note())
    elif is_rtx(trt):
        sidecar = replace(sidecar, reduced_note="TensorRT-RTX chooses kernels when it runs: nothing to inspect before")
    if request.verify:
        with (
            OnnxRuntimeRunner(prepared.source, "cpu", source=os.fspath(request.onnx)) as reference,
            TensorRtRunner.of_engine(trt, loaded, sidecar) as candidate,
        ):
            parity = verify(reference, candidate, spread(photos))
        for line in parity.lines():
            say(f"  {line}")
        parity.require()
        sidecar = replace(sidecar, parity=parity.to_json())
    return sidecar


__all__ = [
    "DEFAULT_BATCH", "DEFAULT_TARGET", "Plan", "Request", "build_engine", "find_device", "plan", "rebuild_command",
    "sidecar_path",
]  # fmt: skip
