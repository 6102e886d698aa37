"""ONNX Runtime: the portable file on any processor, and on NVIDIA GPUs with the package's GPU build."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.extras import import_extra, install_command
from blu_export.runtime.base import Runner, run_error
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.graph_cache import open_session
from blu_export.runtime.onnx_file import OnnxFile, named, spec_of

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda", "tensorrt")
"""``tensorrt`` is ONNX Runtime's provider: it builds an engine at the first call, which takes minutes."""
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}


class OnnxRuntimeRunner(Runner):
    """Runs an exported .onnx file.

    Args:
        model: path, or a file that was already read.
        device: ``cpu``, ``cuda`` or ``tensorrt``, with ``:1`` appended for the second GPU; None takes
            CUDA where it works and the processor elsewhere.
        threads: of one network on the processor; None takes the cores that this process may use.
        source: names a model that was already read in errors.
        store: keep the optimized graph on disk, for other processes that load the same file.
        shared_arena: see RunnerOptions.

    Raises:
        ModelFileError: corrupt, foreign, or refused by ONNX Runtime.
        MissingDependencyError: onnxruntime is not installed, or the asked device does not work here.
    """

    runtime = "onnxruntime"

    def __init__(
        self,
        model: str | os.PathLike[str] | OnnxFile,
        device: str | None = None,
        threads: int | None = None,
        source: str = "model",
        store: bool = False,
        shared_arena: bool = False,
    ) -> None:
        file, source = named(model, source)
        self.spec, self.precision = spec_of(file, source), file.precision
        ort = import_extra("onnxruntime")
        kind, index = _parse_device(device)
        provider = _choose_provider(ort, kind)
        options = partial(_make_options, ort, threads, shared_arena and provider == _PROVIDERS["cpu"])
        self._session = _open_session(ort, file, source, provider, index, options, store)
        active = self._session.get_providers()[0]
        if kind is not None and active != _PROVIDERS[kind]:
            raise MissingDependencyError(
                f"ONNX Runtime cannot use {kind} here; it offers {active}.",
                "Look at blu doctor, or use --device cpu.",
            )
        if active == "CPUExecutionProvider":
            if _choose_provider(ort, kind) != active:
                log.warning("ONNX Runtime's GPU build finds no working GPU; using the processor")
            self.device = "CPU"
        else:
            self.device = f"{active.removesuffix('ExecutionProvider')}: GPU {index}"

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        try:
            detections, masks = self._session.run(["detections", "masks"], {"canvas": canvas, "window": window})
        except Exception as error:  # the native library's errors share no other base class
            raise run_error("ONNX Runtime", canvas, error) from error
        return detections, masks

    def close(self) -> None:
        """Give back the session's memory."""
        self._session = None


def takes_gpu() -> bool:
    """Whether ONNX Runtime would take a GPU by itself: its GPU build is installed, and there is an NVIDIA device."""
    if find_spec("onnxruntime") is None:
        return False
    nodes = [Path("/dev/nvidiactl"), Path("/dev/dxg")]  # Linux; Windows' Linux
    is_there = sys.platform != "linux" or any(node.exists() for node in nodes)
    return is_there and _PROVIDERS["cuda"] in import_extra("onnxruntime").get_available_providers()


def _parse_device(device: str | None) -> tuple[str | None, int]:
    if device is None:
        return None, 0
    kind, _, index = device.lower().partition(":")
    if kind not in DEVICES or (index and not index.isdecimal()):
        raise UsageError(f"There is no device '{device}'.", "Devices are cpu, cuda, cuda:1, …, tensorrt.")
    return kind, int(index or 0)


def _choose_provider(ort: Any, kind: str | None) -> str:
    if kind is not None:
        return _PROVIDERS[kind]
    return next(name for name in (_PROVIDERS["cuda"], _PROVIDERS["cpu"]) if name in ort.get_available_providers())


@cache
def _register_arena(ort: Any) -> None:
    """Give this process the arena that its sessions may share."""
    info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(info, ort.OrtArenaCfg(0, 0, -1, -1))  # no limit; the library's own choices


def _make_options(ort: Any, threads: int | None, shared_arena: bool) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors are raised, warnings are about other people's graphs
    options.intra_op_num_threads = threads or usable_cores()
    # Within a call the threads spin between operators (a sleep costs more than most operators here);
    # between calls they must not, since then the next photo is being decoded on the same cores.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if shared_arena:
        _register_arena(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def _open_session(
    ort: Any,
    model: OnnxFile,
    source: str,
    provider: str,
    index: int,
    make_options: Callable[[], Any],
    store: bool,
) -> Any:
    if provider not in ort.get_available_providers():
        raise MissingDependencyError(
            f"This build of ONNX Runtime has no {provider}.",
            f"Uninstall onnxruntime, then: {install_command('gpu')}",
        )

    settings: dict[str, str] = {}
    if provider != _PROVIDERS["cpu"]:
        # The library's own logger, not the session's: every plan that cuDNN refuses is an error there, although
        # another is taken. What really fails is raised.
        ort.set_default_logger_severity(4)
        if hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA libraries from NVIDIA's wheels
        settings["device_id"] = str(index)
    if provider == _PROVIDERS["cuda"]:
        # TF32 keeps ten bits of the mantissa: that would be another precision than the file's.
        settings |= {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}
        if model.precision == "fp16":
            settings["prefer_nhwc"] = "1"  # batches of 8 ran 1.4 times as fast on an H100
    try:
        if provider == _PROVIDERS["cpu"] and store:
            batch, *sides = next(tensor.shape for tensor in model.inputs if tensor.name == "canvas")[:3]
            follows = any(isinstance(side, str) for side in sides)
            return open_session(ort, model.data, str(batch) if follows else None, make_options)
        providers = [(provider, settings)]
        if provider != _PROVIDERS["cpu"]:
            providers += [(_PROVIDERS["cpu"], {})]
        return ort.InferenceSession(model.data, make_options(), providers=providers)
    except Exception as error:  # as in run
        raise ModelFileError(
            f"ONNX Runtime {ort.__version__} refuses {source}: {error}",
            "Export the model again, or upgrade onnxruntime.",
        ) from error
