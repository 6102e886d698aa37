"""A GPU made of host memory: CUDA's runtime and TensorRT's classes, as far as the runner uses them.

Nothing is done before a stream is synchronized, so that a missing wait shows; copies are checked
against the allocations they touch, so that a wrong pointer or size shows. Engines are ONNX files that
ONNX Runtime runs.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np


class Error(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidDevice = 101
    cudaErrorNoDevice = 100
    cudaErrorInsufficientDriver = 35
    cudaErrorIllegalAddress = 700
    cudaErrorStreamCaptureInvalidated = 901


class Kind(enum.Enum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class Stream:
    def __init__(self, number: int) -> None:
        self.number = number
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.broken = False

    def __int__(self) -> int:
        return self.number

    def add(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)


class FakeCuda:
    """Stands for the module ``cuda.bindings.runtime``."""

    cudaError_t = Error
    cudaMemcpyKind = Kind
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(
        self, capability: tuple[int, int] = (7, 5), memory: int = 2**30, devices: int = 1, driver: int = 13000
    ) -> None:
        self.capability, self.free, self.devices, self.driver = capability, memory, devices, driver
        self.host: dict[int, Any] = {}
        self.device: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.graphs = 0
        self.launched = 0
        self.copied_back = 0
        self.failing: Error | None = None
        self.lock = threading.RLock()

    def cudaDriverGetVersion(self) -> tuple[Error, int]:
        return Error.cudaSuccess, self.driver

    def cudaGetDeviceCount(self) -> tuple[Error, int]:
        if not self.driver:
            return Error.cudaErrorInsufficientDriver, 0
        return (Error.cudaSuccess if self.devices else Error.cudaErrorNoDevice), self.devices

    def cudaGetErrorString(self, error: Error) -> tuple[Error, bytes]:
        return Error.cudaSuccess, error.name.encode()

    def cudaSetDevice(self, device: int) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaGetDeviceProperties(self, device: int) -> tuple[Error, Any]:
        return Error.cudaSuccess, SimpleNamespace(name=b"Fake T4", major=self.capability[0], minor=self.capability[1])

    def cudaMemGetInfo(self) -> tuple[Error, int, int]:
        return Error.cudaSuccess, self.free, self.free

    def cudaGetLastError(self) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Error, int]:
        with self.lock:
            if size > self.free:
                return Error.cudaErrorMemoryAllocation, 0
            self.free -= size
            return Error.cudaSuccess, self._allocate(self.device, size)

    def cudaFree(self, pointer: int) -> tuple[Error]:
        with self.lock:
            self.free += len(self.device.pop(pointer))
        return (Error.cudaSuccess,)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Error, int]:
        with self.lock:
            return Error.cudaSuccess, self._allocate(self.host, size)

    def cudaFreeHost(self, pointer: int) -> tuple[Error]:
        del self.host[pointer]
        return (Error.cudaSuccess,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Error, Stream]:
        stream = Stream(len(self.streams) + 1)
        self.streams[stream.number] = stream
        return Error.cudaSuccess, stream

    def cudaStreamDestroy(self, stream: Stream) -> tuple[Error]:
        del self.streams[stream.number]
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Error]:
        assert stream.captured is None, "a capture must not be synchronized"
        if self.failing is not None:
            return (self.failing,)
        work, stream.queue = stream.queue, []
        for step in work:
            step()
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: Kind, stream: Stream) -> tuple[Error]:
        upload = kind is Kind.cudaMemcpyHostToDevice
        self._check(dst, count, self.device if upload else self.host)
        self._check(src, count, self.host if upload else self.device)

        def copy() -> None:
            ctypes.memmove(dst, src, count)
            self.copied_back += 0 if upload else count

        stream.add(copy)
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[Error]:
        assert not stream.queue, "capture begins on an idle stream"
        stream.captured, stream.broken = [], False
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Error, Any]:
        work, stream.captured = stream.captured, None
        if stream.broken:
            return Error.cudaErrorStreamCaptureInvalidated, None
        return Error.cudaSuccess, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Error, Any]:
        self.graphs += 1
        return Error.cudaSuccess, graph

    def cudaGraphDestroy(self, graph: Any) -> tuple[Error]:
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, graph: Any) -> tuple[Error]:
        self.graphs -= 1
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, graph: Any, stream: Stream) -> tuple[Error]:
        self.launched += 1
        stream.queue.extend(graph)
        return (Error.cudaSuccess,)

    def _allocate(self, table: dict[int, Any], size: int) -> int:
        memory = (ctypes.c_uint8 * size)()
        ctypes.memset(memory, 0xA5, size)  # nothing may rely on fresh memory
        pointer = ctypes.addressof(memory)
        table[pointer] = memory
        return pointer

    def _check(self, pointer: int, size: int, table: dict[int, Any]) -> None:
        fits = any(base <= pointer and pointer + size <= base + len(memory) for base, memory in table.items())
        assert fits, f"{size} bytes at {pointer:#x} lie outside every allocation"


class Strategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class DataType(enum.Enum):
    FLOAT = 0
    INT32 = 3
    UINT8 = 5


class FakeTensorRt:
    """Stands for the module ``tensorrt`` or, with ``rtx``, ``tensorrt_rtx``."""

    ExecutionContextAllocationStrategy = Strategy
    DataType = DataType
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    class ILogger:
        class Severity(enum.IntEnum):
            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2
            INFO = 3

    def __init__(self, cuda: FakeCuda, rtx: bool = False, capturable: bool = True) -> None:
        self.__name__ = "tensorrt_rtx" if rtx else "tensorrt"
        self.__version__ = "11.4.0"
        self.cuda, self.capturable = cuda, capturable
        self.sizes = (1, 1, 4)
        self.canvases: tuple[tuple[int, int], ...] = ()
        """Smallest, best and largest; the engine's own one where there are none."""
        self.refusing = False

    def Runtime(self, logger: Any) -> Any:
        def load(data: bytes) -> FakeEngine | None:
            if self.refusing:
                logger.log(self.ILogger.Severity.ERROR, "serialization version mismatch")
                return None
            return FakeEngine(self, data)

        return SimpleNamespace(deserialize_cuda_engine=load)


class FakeEngine:
    device_memory_size_v2 = 1000

    def __init__(self, trt: FakeTensorRt, data: bytes) -> None:
        import onnxruntime

        self.trt = trt
        self.session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        self.tensors = {t.name: t for t in (*self.session.get_inputs(), *self.session.get_outputs())}
        self.num_io_tensors = len(self.tensors)
        self.contexts = 0

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        kinds = {
            "tensor(uint8)": DataType.UINT8,
            "tensor(float)": DataType.FLOAT,
            "tensor(int32)": DataType.INT32,
        }
        return kinds[self.tensors[name].type]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(side, str) else side for side in self.tensors[name].shape]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        canvases = self.trt.canvases or [tuple(self.get_tensor_shape(name)[1:3])] * 3
        channels = self.get_tensor_shape(name)[3]
        return [[size, *canvas, channels] for size, canvas in zip(self.trt.sizes, canvases, strict=True)]

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, strategy: Any = None) -> FakeContext:
        self.contexts += 1
        return FakeContext(self, needs_memory=strategy is Strategy.USER_MANAGED)


class FakeContext:
    def __init__(self, engine: FakeEngine, needs_memory: bool) -> None:
        self.engine, self.needs_memory = engine, needs_memory
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.pointers: dict[str, int] = {}

    def set_device_memory(self, memory: int, size: int) -> None:
        self.engine.trt.cuda._check(memory, size, self.engine.trt.cuda.device)
        self.needs_memory = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.trt.sizes
        self.shapes[name] = tuple(shape)
        if name == "canvas":
            low, _, high = self.engine.get_tensor_profile_shape("canvas", 0)
            return all(a <= side <= b for a, side, b in zip(low, shape, high, strict=True))
        return smallest <= shape[0] <= largest

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.pointers[name] = memory
        return name in self.engine.tensors

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda = self.engine.trt.cuda
        stream = cuda.streams[stream_handle]
        assert not self.needs_memory and set(self.pointers) == set(self.engine.tensors)
        if stream.captured is not None and not self.engine.trt.capturable:
            stream.broken = True
            return False
        inputs = dict(self.shapes)

        def run() -> None:
            feeds = {
                name: self._array(name, shape, np.uint8 if name == "canvas" else np.float32).copy()
                for name, shape in inputs.items()
            }
            names = [t.name for t in self.engine.session.get_outputs()]
            for name, found in zip(names, self.engine.session.run(names, feeds), strict=True):
                self._array(name, found.shape, found.dtype)[...] = found

        stream.add(run)
        return True

    def _array(self, name: str, shape: tuple[int, ...], kind: Any) -> Any:
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        pointer = self.pointers[name]
        self.engine.trt.cuda._check(pointer, size, self.engine.trt.cuda.device)
        return np.frombuffer((ctypes.c_uint8 * size).from_address(pointer), kind).reshape(shape)
