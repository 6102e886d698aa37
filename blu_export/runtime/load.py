"""From a model file to the Runner that fits it."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

from blu_export.contract import Metadata
from blu_export.errors import ModelFileError, UsageError
from blu_export.model.checkpoints import resolve_weights
from blu_export.model.given import assumed_line, backbone_line
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.options import RUNTIMES_BY_SUFFIX, WEIGHT_SUFFIXES, RunnerOptions

log = logging.getLogger(__name__)


def load_runner(path: str | os.PathLike[str], options: RunnerOptions | None = None) -> Runner:
    """Load a model file into the runtime that fits it.

    Args:
        path: .onnx, .engine, .h5 or .keras, or a folder of checkpoints.
        options: default: the fastest runtime that works here, the file as it is.

    Raises:
        UsageError: the runtime cannot run this kind of file.
        ModelFileError: the file is missing, corrupt, foreign, or in another precision.
        MissingDependencyError: the runtime is not installed, or its device is not there.
    """
    path, options = Path(path), options or RunnerOptions()
    if path.is_dir():
        path, note = resolve_weights(path)
        log.info("%s", note)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path; blu inspect shows what a model is.")
    _check_runtime(path, options.runtime)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        _refuse_given(path, options)
        return _load_onnx(path, options)
    if suffix in WEIGHT_SUFFIXES:
        return _load_weights(path, options)
    runner = _load_engine(path, options)
    if options.precision not in ("auto", "file", runner.precision):
        runner.close()
        raise ModelFileError(f"{path} is a {runner.precision} model, not {options.precision}.", "Name another file.")
    return runner


def _check_runtime(path: Path, runtime: str) -> None:
    choices = RUNTIMES_BY_SUFFIX.get(path.suffix.lower())
    if choices is None:
        raise ModelFileError(f"{path} is not a model file.", f"Model files are {', '.join(RUNTIMES_BY_SUFFIX)}.")
    if runtime not in ("auto", *choices):
        raise UsageError(f"{runtime} cannot run {path}.", f"{path.suffix} files run in {' or '.join(choices)}.")


def _load_onnx(path: Path, options: RunnerOptions, measure: str = "") -> Runner:
    from blu_export.runtime.choice import choose

    choice = choose(path, options.runtime, options.precision, options.device, measure)
    source = os.fspath(choice.path)
    log.info("runtime %s, %s: %s", choice.runtime, choice.model.precision, choice.why)
    parity = choice.model.json_metadata(Metadata.PARITY)
    if isinstance(parity, dict) and parity.get("passed") is False:
        counts = (parity.get("matched", "?"), parity.get("instances", "?"))
        log.warning("%s failed its parity check: %s of %s instances matched at its export", source, *counts)
    threads = options.threads or usable_cores()
    lanes = min(choice.lanes, threads)
    if options.throughput:
        threads //= lanes
    runner: Runner
    if choice.runtime == "openvino":
        from blu_export.runtime.openvino import OpenVinoRunner

        runner = OpenVinoRunner(choice.model, options.device, threads, source=source, bf16=options.precision == "bf16")
    else:
        from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

        shared = options.shared_arena
        runner = OnnxRuntimeRunner(
            choice.model, options.device, threads, source=source, store=True, shared_arena=shared
        )
    if runner.device == "CPU":
        runner.throughput_lanes = lanes
        runner.lanes = lanes if options.throughput else 1
    return runner


def _load_weights(path: Path, options: RunnerOptions) -> Runner:
    """Keras weights: converted in memory, or in Keras where that is asked for."""
    if options.precision in ("fp16", "int8"):
        raise ModelFileError(
            f"{path} is a float32 model, not {options.precision}.",
            f"Write one with: blu export onnx --weights {shlex.quote(str(path))} --{options.precision}",
        )
    given = options.given
    for line in given.lines():
        log.info("%s", line)
    runner: Runner
    if options.runtime == "keras":
        from blu_export.runtime.keras import KerasRunner

        if options.precision == "bf16":
            raise UsageError("Keras computes in float32 here.", "Leave out --precision.")
        runner = KerasRunner(path, options.device, given)
    else:
        from blu_export.runtime.converted import converted

        with converted(path, given) as file:
            exported = f"blu export onnx --weights {shlex.quote(str(path))} and blu benchmark on what it writes"
            runner = _load_onnx(file, options, exported)
    for line in filter(None, (backbone_line(given, runner.spec), assumed_line(runner.spec))):
        log.warning("%s", line)
    return runner


def is_given(options: RunnerOptions) -> bool:
    """Whether they say anything about Keras weights."""
    return options.class_names is not None or bool(options.settings or options.config or options.ignore_layers)


def _refuse_given(path: Path, options: RunnerOptions) -> None:
    if is_given(options):
        raise UsageError(f"The settings of {path} are fixed in it.", "Give them to blu export onnx.")


def _load_engine(path: Path, options: RunnerOptions) -> Runner:
    from blu_export.runtime.tensorrt import TensorRtRunner

    _refuse_given(path, options)
    return TensorRtRunner(path, options.device)
