"""Runners: the same model in Keras, ONNX Runtime, OpenVINO and TensorRT."""

from __future__ import annotations

import logging
import os
from importlib.util import find_spec
from pathlib import Path

from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.runtime.base import Runner
from blu_export.runtime.onnx_file import OnnxFile, read_onnx

log = logging.getLogger(__name__)

RUNTIMES_BY_SUFFIX = {
    ".onnx": ("onnxruntime", "openvino"),
    ".h5": ("keras",),
    ".keras": ("keras",),
    ".engine": ("tensorrt",),
}
"""Which runtimes can run a file; every one of them implements Runner."""
RUNTIMES = ("auto", "keras", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "float32", "fp16", "bf16", "int8")

__all__ = ["PRECISIONS", "RUNTIMES", "RUNTIMES_BY_SUFFIX", "Runner", "load_runner"]


def load_runner(
    path: str | os.PathLike[str],
    runtime: str = "auto",
    precision: str = "auto",
    device: str | None = None,
    threads: int | None = None,
) -> Runner:
    """Load a model file into the runtime that fits it.

    Args:
        path: .onnx, .engine, .h5 or .keras.
        runtime: one of RUNTIMES; ``auto`` takes the fastest that works here and logs which and why.
        precision: what the file must be in; ``auto`` takes the file as it is.
        device: ``cpu``, ``cuda``, ``cuda:1``, … as the runtime knows it; None lets it choose.
        threads: of one network on the processor; None takes the cores that this process may use.

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
    choices = _runtimes_for(path, runtime)
    runner = _load_onnx(path, choices, device, threads) if path.suffix.lower() == ".onnx" else _load_other(path, device)
    if precision not in ("auto", runner.precision):
        runner.close()
        raise ModelFileError(
            f"{path} is a {runner.precision} model, not {precision}.",
            f"Write one with: blu export onnx --precision {precision}",
        )
    return runner


def _runtimes_for(path: Path, runtime: str) -> tuple[str, ...]:
    """The runtimes to consider, the asked one alone where one is asked."""
    if runtime not in RUNTIMES:
        raise UsageError(f"There is no runtime '{runtime}'.", f"Runtimes are {', '.join(RUNTIMES)}.")
    choices = RUNTIMES_BY_SUFFIX.get(path.suffix.lower())
    if choices is None:
        raise ModelFileError(f"{path} is no model file.", f"Model files are {', '.join(RUNTIMES_BY_SUFFIX)}.")
    if runtime == "auto":
        return choices
    if runtime not in choices:
        raise UsageError(f"{runtime} cannot run {path}.", f"{path.suffix} files run in {' or '.join(choices)}.")
    return (runtime,)


def _load_onnx(path: Path, choices: tuple[str, ...], device: str | None, threads: int | None) -> Runner:
    model = read_onnx(path)
    chosen, why = choices[0], "asked for"
    if len(choices) > 1:
        chosen, why = _fastest(model, device)
    log.info("runtime %s: %s", chosen, why)
    if chosen == "openvino":
        from blu_export.runtime.openvino import OpenVinoRunner

        return OpenVinoRunner(model, device, threads, source=os.fspath(path))
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

    return OnnxRuntimeRunner(model, device, threads, source=os.fspath(path))


def _fastest(model: OnnxFile, device: str | None) -> tuple[str, str]:
    """(runtime, reason) for an .onnx file, by what was measured on it (benchmarks/)."""
    installed = [name for name in RUNTIMES_BY_SUFFIX[".onnx"] if find_spec(name) is not None]
    if not installed:
        raise MissingDependencyError(
            "Neither ONNX Runtime nor OpenVINO is installed.", "Install them with: pip install 'blu-export[cpu]'"
        )
    if len(installed) == 1:
        return installed[0], "the only one installed"
    if device not in (None, "cpu"):
        return "onnxruntime", f"the one of the two that works on {device}"
    if model.precision == "int8":
        return "openvino", "the fastest for int8 on a processor"
    return "onnxruntime", f"the fastest for {model.precision}"


def _load_other(path: Path, device: str | None) -> Runner:
    if path.suffix.lower() == ".engine":
        from blu_export.runtime.tensorrt import TensorRtRunner

        return TensorRtRunner(path, device)
    from blu_export.runtime.keras import KerasRunner

    return KerasRunner(path)
