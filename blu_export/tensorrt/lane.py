"""A lane: a stream with its own buffers and execution contexts, on which batches run one after the other.

Every batch size and canvas has an execution context of its own, since a CUDA graph belongs to the shapes of the
context that it was captured from. The contexts share one piece of scratch memory, and of many the one that was used
longest ago is given up.
"""

from __future__ import annotations

import ctypes
import logging
from math import prod
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.spec import ModelSpec
from blu_export.tensorrt.builder import is_rtx
from blu_export.tensorrt.cuda import Cuda, CudaError
from blu_export.tensorrt.sidecar import Sidecar

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

MOST_CONTEXTS = 24
"""Shapes that are kept ready: a CUDA graph holds some megabytes."""

Shape = tuple[int, int, int]
"""(batch, height, width)."""
Arrays = tuple[NDArray[np.float32], NDArray[np.float32]]


class Lane:
    """One batch at a time.

    Args:
        trt: the engine's module.
        engine: with the inputs and outputs of a Mask R-CNN.

    Attributes:
        graphs: ``on``, ``off`` until the first run, or why there are no CUDA graphs.

    Raises:
        CudaError: the memory does not suffice.
    """

    def __init__(
        self, trt: ModuleType, cuda: Cuda, engine: tensorrt.ICudaEngine, spec: ModelSpec, sidecar: Sidecar
    ) -> None:
        self._trt, self._cuda, self._engine, self._batch = trt, cuda, engine, sidecar.batch
        self._channels = spec.image_channel_count
        self._contexts: dict[Shape, tensorrt.IExecutionContext] = {}  # the one used longest ago first
        self._captured: dict[Shape, Any] = {}
        self._pinned: list[int] = []
        self._device: dict[str, int] = {}
        self._scratch = 0
        self._stream: Any = None
        self.graphs = "off"
        if is_rtx(trt):
            self.graphs = "left to TensorRT-RTX"
        most, rows = self._batch.largest, spec.detection_max_instances
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "canvas": ((most * prod(sidecar.canvases.largest) * self._channels,), np.uint8),
            "window": ((most, 4), np.float32),
            "detections": ((most, rows, 6), np.float32),
            "masks": ((most, rows, *spec.mask_shape), np.float32),
            "num_detections": ((most,), np.int32),
        }
        try:
            cuda.select()
            self._stream = cuda.call("cudaStreamCreateWithFlags", cuda.runtime.cudaStreamNonBlocking)
            self._host = {name: self._pin(*shape) for name, shape in shapes.items()}
            for name, array in self._host.items():
                self._device[name] = int(cuda.call("cudaMalloc", array.nbytes))
            if not is_rtx(trt) and engine.device_memory_size_v2:
                self._scratch = int(cuda.call("cudaMalloc", engine.device_memory_size_v2))
        except CudaError:
            self.close()
            raise
        self._asked = 0

    def submit(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> None:
        """Start a batch; returns before it is done."""
        self._cuda.select()
        self._asked = len(canvas)
        size = max(self._asked, self._batch.smallest)
        shape = (size, canvas.shape[1], canvas.shape[2])
        pixels = self._canvases(shape)
        pixels[: self._asked] = canvas
        self._host["window"][: self._asked] = window
        if size > self._asked:
            pixels[self._asked :] = 0
            self._host["window"][self._asked : size] = self._host["window"][0]
        if shape not in self._contexts:
            while len(self._contexts) >= MOST_CONTEXTS:
                self._forget(next(iter(self._contexts)))
            self._contexts[shape] = self._make_context(shape)
            self._enqueue(shape)  # the first run sets things up that a capture must not contain
            self._capture(shape)
            return
        self._contexts[shape] = self._contexts.pop(shape)
        if (graph := self._captured.get(shape)) is not None:
            self._cuda.call("cudaGraphLaunch", graph, self._stream)
        else:
            self._enqueue(shape)

    def collect(self) -> Arrays:
        """Wait for the batch; fetch the masks of its detections, and nothing of the empty rows."""
        self._cuda.select()
        self._cuda.call("cudaStreamSynchronize", self._stream)
        count = self._asked
        detections = self._host["detections"][:count].copy()
        masks, pinned = np.zeros((count, *self._host["masks"].shape[1:]), np.float32), self._host["masks"]
        rows = np.clip(self._host["num_detections"][:count], 0, pinned.shape[1])
        for image, used in enumerate(rows):
            if used:
                self._copy("masks", "cudaMemcpyDeviceToHost", pinned[image, :used].nbytes, image * pinned[0].nbytes)
        self._cuda.call("cudaStreamSynchronize", self._stream)
        for image, used in enumerate(rows):
            masks[image, :used] = pinned[image, :used]
        return detections, masks

    def abandon(self) -> None:
        """Wait until nothing uses the buffers any more, also after an error."""
        try:
            self._cuda.select()
            self._cuda.call("cudaStreamSynchronize", self._stream)
        except CudaError as error:
            log.debug("abandoned a batch: %s", error)

    def close(self) -> None:
        """Free everything."""
        freed: list[tuple[str, Any]] = [("cudaSetDevice", self._cuda.device)]
        freed += [("cudaGraphExecDestroy", graph) for graph in self._captured.values()]
        self._contexts.clear()
        freed += [("cudaFree", pointer) for pointer in (*self._device.values(), self._scratch) if pointer]
        freed += [("cudaFreeHost", pointer) for pointer in self._pinned]
        freed += [("cudaStreamDestroy", self._stream)] if self._stream is not None else []
        self._host, self._device, self._pinned, self._captured = {}, {}, [], {}
        self._scratch, self._stream = 0, None
        for name, argument in freed:
            try:
                self._cuda.call(name, argument)
            except CudaError as error:  # a lost GPU takes its memory with it
                log.debug("%s", error)

    def _pin(self, shape: tuple[int, ...], kind: type[np.generic]) -> NDArray[Any]:
        """Page-locked memory, which the GPU copies from and to without a detour."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        pointer = int(self._cuda.call("cudaHostAlloc", size, self._cuda.runtime.cudaHostAllocDefault))
        self._pinned.append(pointer)
        memory = (ctypes.c_uint8 * size).from_address(pointer)
        flat: NDArray[Any] = np.frombuffer(memory, dtype=kind)  # type: ignore[call-overload]
        return flat.reshape(shape)

    def _canvases(self, shape: Shape) -> NDArray[np.uint8]:
        """The pinned memory for canvases of this shape: uint8 [B, H, W, C]."""
        whole = (*shape, self._channels)
        pixels: NDArray[np.uint8] = self._host["canvas"][: prod(whole)].reshape(whole)
        return pixels

    def _forget(self, shape: Shape) -> None:
        """Give up what is kept ready for a shape; nothing of this lane is under way."""
        del self._contexts[shape]
        if (graph := self._captured.pop(shape, None)) is not None:
            self._cuda.call("cudaGraphExecDestroy", graph)

    def _make_context(self, shape: Shape) -> tensorrt.IExecutionContext:
        trt = self._trt
        engine: tensorrt.ICudaEngine = self._engine
        context: tensorrt.IExecutionContext | None
        if is_rtx(trt):
            # It compiles kernels when it runs, so it captures for itself, when they are ready.
            config: Any = engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if context is None:
            raise CudaError(
                "cudaErrorMemoryAllocation", "create_execution_context", f"no context for a batch of {shape[0]}"
            )
        if self._scratch:  # the lane's contexts never run at the same time
            context.set_device_memory(self._scratch, engine.device_memory_size_v2)
        good = [context.set_input_shape("canvas", (*shape, self._channels))]
        good += [context.set_input_shape("window", (shape[0], 4))]
        good += [context.set_tensor_address(name, pointer) for name, pointer in self._device.items()]
        if not all(good):
            raise BluError(
                f"The engine does not take {shape[0]} canvases of {shape[1]}x{shape[2]}.",
                "Build it again with another --batch or --canvas.",
            )
        return context

    def _enqueue(self, shape: Shape) -> None:
        size = shape[0]
        self._copy("canvas", "cudaMemcpyHostToDevice", self._canvases(shape).nbytes)
        self._copy("window", "cudaMemcpyHostToDevice", self._host["window"][:size].nbytes)
        context: tensorrt.IExecutionContext = self._contexts[shape]
        if not context.execute_async_v3(int(self._stream)):
            raise BluError(f"TensorRT could not start a batch of {size}.", "Its log, shown before this, says why.")
        for name in ("num_detections", "detections"):
            self._copy(name, "cudaMemcpyDeviceToHost", self._host[name][:size].nbytes)

    def _copy(self, name: str, direction: str, size: int, offset: int = 0) -> None:
        runtime = self._cuda.runtime
        host, device = self._host[name].ctypes.data + offset, self._device[name] + offset
        ends = (device, host) if direction == "cudaMemcpyHostToDevice" else (host, device)
        self._cuda.call("cudaMemcpyAsync", *ends, size, getattr(runtime.cudaMemcpyKind, direction), self._stream)

    def _capture(self, shape: Shape) -> None:
        """Record a run as a CUDA graph; an engine whose loops need the host between kernels has none."""
        if self.graphs not in ("off", "on"):
            return
        cuda, runtime = self._cuda, self._cuda.runtime
        cuda.call("cudaStreamSynchronize", self._stream)
        mode = runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        cuda.call("cudaStreamBeginCapture", self._stream, mode)
        problem: BluError | None = None
        try:
            self._enqueue(shape)
        except BluError as error:
            problem = error
        try:  # ends the capture in any case
            graph = cuda.call("cudaStreamEndCapture", self._stream)
            if problem is None:
                self._captured[shape] = cuda.call("cudaGraphInstantiate", graph, 0)
                cuda.call("cudaGraphDestroy", graph)
                self.graphs = "on"
        except CudaError as error:
            problem = problem or error
        if problem is not None:
            runtime.cudaGetLastError()  # the failed capture's, which the next call would report as its own
            self.graphs = f"not possible: {problem.what}"
            log.warning("this engine runs without CUDA graphs: %s", problem.what)
            self._contexts[shape] = self._make_context(shape)
            self._enqueue(shape)
