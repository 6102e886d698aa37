"""TensorRT and TensorRT-RTX engines on an NVIDIA GPU, with neither TensorFlow nor PyTorch.

Lanes (tensorrt.lane) overlap, so that one batch is copied to the GPU while another is computed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.contract import graph_inputs, graph_outputs
from blu_export.errors import BluError, ModelFileError, UsageError
from blu_export.runtime.base import Runner
from blu_export.tensorrt.builder import make_logger, title
from blu_export.tensorrt.cuda import Cuda, CudaError
from blu_export.tensorrt.lane import Lane
from blu_export.tensorrt.libraries import load_builder
from blu_export.tensorrt.sidecar import Sidecar, read_sidecar

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

LANES = 2
"""One batch computes while the next is copied; more lanes only take memory."""

Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]
Canvases = tuple[NDArray[np.uint8], NDArray[np.float32]]


class TensorRtRunner(Runner):
    """Runs an engine that ``blu build-engine`` wrote.

    The engine's hash, its builder's version, the GPU's compute capability and the shapes are compared with the
    sidecar before anything native sees the file.

    Args:
        path: the engine; its sidecar lies beside it.
        device: ``cuda`` or ``cuda:1``; None is the first GPU.

    Attributes:
        cuda_graphs: ``on``, ``off`` until the first run, or why the engine cannot be captured.

    Raises:
        ModelFileError: the engine does not fit its sidecar, the builder's version or the GPU; the fix
            is the command that builds it again.
        MissingDependencyError: TensorRT, cuda-python or the GPU is not there.
        CudaError: the GPU's memory does not suffice.
    """

    runtime = "tensorrt"

    def __init__(self, path: str | os.PathLike[str], device: str | None = None) -> None:
        path = Path(path)
        sidecar = read_sidecar(path)
        data = _read(path)
        sidecar.check_hash(path, data)
        trt = load_builder(sidecar.builder)
        sidecar.check_builder(path, trt.__version__)
        cuda = Cuda(_device_number(device))
        sidecar.check_device(path, cuda.name, cuda.capability)
        self._logger = make_logger(trt)
        runtime: tensorrt.Runtime = trt.Runtime(self._logger)
        self._runtime = runtime  # lives as long as its engine
        engine: tensorrt.ICudaEngine | None = runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise ModelFileError(
                f"{title(trt)} refuses {path}: {self._logger.last_error()}.", f"Build it again: {sidecar.rebuild}"
            )
        self._start(trt, cuda, engine, sidecar, str(path))

    @classmethod
    def of_engine(
        cls, trt: ModuleType, engine: tensorrt.ICudaEngine, sidecar: Sidecar, cuda: Cuda | None = None
    ) -> TensorRtRunner:
        """A runner of an engine that is loaded already."""
        runner = cls.__new__(cls)
        runner._start(trt, cuda or Cuda(), engine, sidecar, "the engine")
        return runner

    def _start(self, trt: ModuleType, cuda: Cuda, engine: tensorrt.ICudaEngine, sidecar: Sidecar, source: str) -> None:
        _check_shapes(trt, engine, sidecar, source)
        self.spec, self.precision = sidecar.spec, sidecar.precision
        self.device = f"CUDA: {cuda.name}"
        self.sidecar = sidecar
        self._trt, self._cuda = trt, cuda
        self._engine: tensorrt.ICudaEngine | None = engine
        self._free: deque[Lane] = deque()
        self._made = 0
        self._most = LANES
        self._change = threading.Condition()
        self._free.append(self._new_lane())

    @property
    def cuda_graphs(self) -> str:
        """Whether runs are replayed CUDA graphs."""
        return self._free[0].graphs if self._free else "in use"

    def run(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> Arrays:
        """See Runner.run; batches larger than the engine's are run in pieces that overlap."""
        found = list(self.stream([(canvas, window)]))
        return found[0]

    def stream(self, batches: Iterable[Canvases]) -> Iterator[Arrays]:
        """Results of batches, in order; each is uploaded while the one before it is computed."""
        pieces: deque[int] = deque()  # pieces left of each batch that is not complete

        def cut() -> Iterator[Canvases]:
            most = self.sidecar.batch.largest
            for canvas, window in batches:
                _check_input(self.sidecar, canvas, window)
                starts = range(0, max(len(canvas), 1), most)
                pieces.append(len(starts))
                for start in starts:
                    yield canvas[start : start + most], window[start : start + most]

        done: list[Arrays] = []
        for piece in self._overlapped(cut()):
            done.append(piece)
            if len(done) == pieces[0]:
                pieces.popleft()
                yield (
                    done[0]
                    if len(done) == 1
                    else (
                        np.concatenate([d for d, _ in done]),
                        np.concatenate([m for _, m in done]),
                    )
                )
                done = []

    def close(self) -> None:
        """Give back the device memory. No run may be under way."""
        with self._change:
            lanes, self._made = list(self._free), 0
            self._free.clear()
        for lane in lanes:
            lane.close()
        self._engine = None

    def _overlapped(self, batches: Iterable[Canvases]) -> Iterator[Arrays]:
        busy: deque[Lane] = deque()
        try:
            for canvas, window in batches:
                lane = self._take(wait=not busy)
                if lane is None:  # the others are in use: finish our oldest first
                    lane = busy.popleft()
                    try:
                        found = lane.collect()
                    except BaseException:
                        self._give(lane)
                        raise
                    busy.append(lane)
                    lane.submit(canvas, window)
                    yield found
                else:
                    busy.append(lane)
                    lane.submit(canvas, window)
            while busy:
                found = busy[0].collect()
                self._give(busy.popleft())
                yield found
        finally:
            for lane in busy:
                lane.abandon()
                self._give(lane)

    def _take(self, wait: bool) -> Lane | None:
        """A free lane, a new one while there may be more, or (without ``wait``) None."""
        with self._change:
            if self._engine is None:
                raise BluError("This runner was closed.", "Load the engine again.")
            while not self._free:
                if self._made < self._most:
                    try:
                        return self._new_lane()
                    except CudaError as error:
                        if error.lost or self._made == 0:
                            raise
                        self._most = self._made
                        log.warning("the GPU's memory suffices for %d lane only: batches do not overlap", self._made)
                        continue
                if not wait:
                    return None
                self._change.wait()
            return self._free.popleft()

    def _give(self, lane: Lane) -> None:
        with self._change:
            self._free.append(lane)
            self._change.notify()

    def _new_lane(self) -> Lane:
        assert self._engine is not None
        lane = Lane(self._trt, self._cuda, self._engine, self.spec, self.sidecar)
        self._made += 1
        return lane


def _check_input(sidecar: Sidecar, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> None:
    canvases, channels = sidecar.canvases, sidecar.spec.image_channel_count
    good = canvas.dtype == np.uint8 and canvas.ndim == 4 and canvas.shape[3] == channels and len(canvas) > 0
    if not good or window.shape != (len(canvas), 4) or not canvases.hold(canvas.shape[1], canvas.shape[2]):
        sides = [
            str(low) if low == high else f"{low} to {high}"
            for low, high in zip(canvases.smallest, canvases.largest, strict=True)
        ]
        raise UsageError(
            f"The engine takes canvases uint8 [B, {sides[0]}, {sides[1]}, {channels}] and windows [B, 4], "
            f"not {canvas.dtype} {list(canvas.shape)} and {list(window.shape)}."
        )


def _check_shapes(trt: ModuleType, engine: tensorrt.ICudaEngine, sidecar: Sidecar, source: str) -> None:
    """Inputs, outputs and batch sizes of a loaded engine are those of its sidecar."""
    spec, batch = sidecar.spec, sidecar.batch
    kinds = {"uint8": trt.DataType.UINT8, "float32": trt.DataType.FLOAT, "int32": trt.DataType.INT32}
    wanted = {
        tensor.name: (kinds[tensor.dtype], tuple(size if isinstance(size, int) else -1 for size in tensor.shape))
        for tensor in (*graph_inputs(spec), *graph_outputs(spec))
    }
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    shapes: dict[str, Any] = {name: engine.get_tensor_shape(name) for name in names}  # Dims, which are sequences
    found = {name: (engine.get_tensor_dtype(name), tuple(shape)) for name, shape in shapes.items()}
    if batch.smallest == batch.largest:  # a profile of one size may make it a constant
        found = {name: (kind, (-1, *shape[1:])) for name, (kind, shape) in found.items()}
    profile: list[Any] = list(engine.get_tensor_profile_shape("canvas", 0)) if "canvas" in found else []
    canvases = sidecar.canvases
    sizes = zip((batch.smallest, batch.best, batch.largest),
                (canvases.smallest, canvases.best, canvases.largest), strict=True)  # fmt: skip
    shapes_wanted = [(size, *canvas, spec.image_channel_count) for size, canvas in sizes]
    if found != wanted or [tuple(shape) for shape in profile] != shapes_wanted:
        differing = (
            ", ".join(sorted({n for n in {*wanted, *found} if wanted.get(n) != found.get(n)}))
            or "batch sizes or canvases"
        )
        raise ModelFileError(
            f"{source} has other {differing} than its sidecar says.", f"Build it again: {sidecar.rebuild}"
        )


def _device_number(device: str | None) -> int:
    kind, _, number = (device or "cuda").lower().partition(":")
    if kind not in ("cuda", "tensorrt") or (number and not number.isdecimal()):
        raise UsageError(f"An engine cannot run on '{device}'.", "Devices are cuda, cuda:1, ….")
    return int(number or 0)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
