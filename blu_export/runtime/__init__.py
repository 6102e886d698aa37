"""Runners: the same model in Keras, ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from blu_export.contract import Metadata
from blu_export.errors import ModelFileError, UsageError
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores

log = logging.getLogger(__name__)

RUNTIMES_BY_SUFFIX = {
    ".onnx": ("onnxruntime", "openvino"),
    ".h5": ("keras",),
    ".keras": ("keras",),
    ".engine": ("tensorrt",),
}
"""Which runtimes can run a file; every one of them implements Runner."""
RUNTIMES = ("auto", "keras", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "file", "float32", "fp16", "bf16", "int8")

__all__ = ["PRECISIONS", "RUNTIMES", "RUNTIMES_BY_SUFFIX", "Runner", "load_runner"]


def load_runner(
    path: str | os.PathLike[str],
    runtime: str = "auto",
    precision: str = "file",
    device: str | None = None,
    threads: int | None = None,
    throughput: bool = False,
) -> Runner:
    """Load a model file into the runtime that fits it.

    Args:
        path: .onnx, .engine, .h5 or .keras.
        runtime: one of RUNTIMES; ``auto`` takes the fastest that works here and logs which and why.
        precision: ``file`` takes the file as it is; a name takes the file in that precision, or the one
            beside it; ``bf16`` is the float32 file computed in bf16 (OpenVINO); ``auto`` takes the fastest of
            them whose parity passed at its export, and logs which and why. See ``runtime.choice``.
        device: ``cpu``, ``cuda``, ``cuda:1``, … as the runtime knows it; None lets it choose.
        threads: on the processor; None takes the cores that this process may use.
        throughput: load for many photos rather than for the least time of one: ``Runner.lanes`` says how
            many calls go best at the same time, and the threads are divided among them.

    Raises:
        UsageError: no such runtime or precision, or the runtime cannot run this kind of file.
        ModelFileError: the file is missing, corrupt, foreign, or in another precision.
        MissingDependencyError: the runtime is not installed, or its device is not there.
    """
    path = Path(path)
    if precision not in PRECISIONS:
        raise UsageError(f"There is no precision '{precision}'.", f"Precisions are {', '.join(PRECISIONS)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot run anything.", "Give at least one.")
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path; blu inspect shows what a model is.")
    _check_runtime(path, runtime)
    if path.suffix.lower() == ".onnx":
        return _load_onnx(path, runtime, precision, device, threads, throughput)
    runner = _load_other(path, device)
    if precision not in ("auto", "file", runner.precision):
        runner.close()
        raise ModelFileError(f"{path} is a {runner.precision} model, not {precision}.", "Name another file.")
    return runner


def _check_runtime(path: Path, runtime: str) -> None:
    if runtime not in RUNTIMES:
        raise UsageError(f"There is no runtime '{runtime}'.", f"Runtimes are {', '.join(RUNTIMES)}.")
    choices = RUNTIMES_BY_SUFFIX.get(path.suffix.lower())
    if choices is None:
        raise ModelFileError(f"{path} is no model file.", f"Model files are {', '.join(RUNTIMES_BY_SUFFIX)}.")
    if runtime not in ("auto", *choices):
        raise UsageError(f"{runtime} cannot run {path}.", f"{path.suffix} files run in {' or '.join(choices)}.")


def _load_onnx(
    path: Path, runtime: str, precision: str, device: str | None, threads: int | None, throughput: bool
) -> Runner:
    from blu_export.runtime.choice import choose

    choice = choose(path, runtime, precision, device)
    source = os.fspath(choice.path)
    log.info("runtime %s, %s: %s", choice.runtime, choice.model.precision, choice.why)
    parity = choice.model.json_metadata(Metadata.PARITY)
    if isinstance(parity, dict) and parity.get("passed") is False:
        counts = (parity.get("matched", "?"), parity.get("instances", "?"))
        log.warning("%s failed its parity check: %s of %s instances matched at its export", source, *counts)
    lanes = 1
    if throughput:
        threads = threads or usable_cores()
        lanes = min(choice.lanes, threads)
        threads //= lanes
    runner: Runner
    if choice.runtime == "openvino":
        from blu_export.runtime.openvino import OpenVinoRunner

        runner = OpenVinoRunner(choice.model, device, threads, source=source, bf16=precision == "bf16")
    else:
        from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

        runner = OnnxRuntimeRunner(choice.model, device, threads, source=source, store=True)
    runner.lanes = lanes if runner.device == "CPU" else 1
    return runner


def _load_other(path: Path, device: str | None) -> Runner:
    if path.suffix.lower() == ".engine":
        from blu_export.runtime.tensorrt import TensorRtRunner

        return TensorRtRunner(path, device)
    from blu_export.runtime.keras import KerasRunner

    return KerasRunner(path, device)
