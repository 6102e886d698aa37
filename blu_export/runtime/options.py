"""What a caller may ask of a Runner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blu_export import contract
from blu_export.errors import UsageError
from blu_export.model.given import Given

WEIGHT_SUFFIXES = (".h5", ".keras", ".hdf5")
"""Keras weights: converted in memory, or run by Keras itself."""
RUNTIMES_BY_SUFFIX = {
    ".onnx": ("onnxruntime", "openvino"),
    **dict.fromkeys(WEIGHT_SUFFIXES, ("onnxruntime", "openvino", "keras")),
    ".engine": ("tensorrt",),
}
"""Which runtimes can run a file; every one of them implements Runner."""
RUNTIMES = ("auto", "keras", "onnxruntime", "openvino", "tensorrt")
PRECISIONS = ("auto", "file", *contract.PRECISIONS)


@dataclass(frozen=True)
class RunnerOptions:
    """How to run a model file.

    Raises:
        UsageError: no such runtime or precision, or no thread.
    """

    runtime: str = "auto"
    """One of RUNTIMES; ``auto`` takes the fastest that works here and logs which and why."""
    precision: str = "file"
    """``file`` takes the file as it is; a name takes the file in that precision, or the one beside it; ``bf16`` is
    the float32 file computed in bf16 (OpenVINO); ``auto`` takes the fastest of them whose parity passed at its
    export, and logs which and why. See ``runtime.choice``."""
    device: str | None = None
    """``cpu``, ``cuda``, ``cuda:1``, … as the runtime knows it; None lets it choose."""
    threads: int | None = None
    """On the processor; None takes the cores that this process may use."""
    throughput: bool = False
    """Load for many photos rather than for the least time of one: ``Runner.lanes`` says how many calls go best at
    the same time, and the threads are divided among them."""

    shared_arena: bool = False
    """ONNX Runtime on the processor: models of this process take the memory for activations from one arena, which
    stays until the process ends. For a model that is loaded twice and runs in one of its ways at a time."""

    class_names: Sequence[str] | None = None
    settings: Sequence[str] = ()
    config: str | None = None
    ignore_layers: Sequence[str] = ()
    """The four above are about Keras weights, which do not say all about themselves; see ``model.given.Given``."""

    @property
    def given(self) -> Given:
        """What the user says about Keras weights.

        Raises:
            UsageError, ModelFileError: the file ``config`` cannot be read.
        """
        return Given.of(self.class_names, self.settings, self.ignore_layers, self.config)

    def __post_init__(self) -> None:
        for what, value, known in (
            ("runtime", self.runtime, RUNTIMES),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise UsageError(f"There is no {what} '{value}'.", f"Use one of {', '.join(known)}.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"{self.threads} threads cannot run anything.", "Give at least one.")
