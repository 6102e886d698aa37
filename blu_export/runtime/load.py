"""From a model file to the Runner that fits it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from blu_export.contract import Metadata
from blu_export.errors import ModelFileError, UsageError
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.options import RUNTIMES_BY_SUFFIX, RunnerOptions

log = logging.getLogger(__name__)


def load_runner(path: str | os.PathLike[str], options: RunnerOptions | None = None) -> Runner:
    """Load a model file into the runtime that fits it.

    Args:
        path: .onnx, .engine, .h5 or .keras.
        options: default: the fastest runtime that works here, the file as it is.

    Raises:
        UsageError: the runtime cannot run this kind of file.
        ModelFileError: the file is missing, corrupt, foreign, or in another precision.
        MissingDependencyError: the runtime is not installed, or its device is not there.
    """
    path, options = Path(path), options or RunnerOptions()
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path; blu inspect shows what a model is.")
    _check_runtime(path, options.runtime)
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, options)
    runner = _load_other(path, options.device)
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


def _load_onnx(path: Path, options: RunnerOptions) -> Runner:
    from blu_export.runtime.choice import choose

    choice = choose(path, options.runtime, options.precision, options.device)
    source = os.fspath(choice.path)
    log.info("runtime %s, %s: %s", choice.runtime, choice.model.precision, choice.why)
    parity = choice.model.json_metadata(Metadata.PARITY)
    if isinstance(parity, dict) and parity.get("passed") is False:
        counts = (parity.get("matched", "?"), parity.get("instances", "?"))
        log.warning("%s failed its parity check: %s of %s instances matched at its export", source, *counts)
    lanes, threads = 1, options.threads
    if options.throughput:
        threads = threads or usable_cores()
        lanes = min(choice.lanes, threads)
        threads //= lanes
    runner: Runner
    if choice.runtime == "openvino":
        from blu_export.runtime.openvino import OpenVinoRunner

        runner = OpenVinoRunner(choice.model, options.device, threads, source=source, bf16=options.precision == "bf16")
    else:
        from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

        runner = OnnxRuntimeRunner(choice.model, options.device, threads, source=source, store=True)
    runner.lanes = lanes if runner.device == "CPU" else 1
    return runner


def _load_other(path: Path, device: str | None) -> Runner:
    if path.suffix.lower() == ".engine":
        from blu_export.runtime.tensorrt import TensorRtRunner

        return TensorRtRunner(path, device)
    from blu_export.runtime.keras import KerasRunner

    return KerasRunner(path, device)
