"""The few CUDA calls that engines need, with errors in words."""

from __future__ import annotations

from typing import Any

from blu_export.errors import BluError, MissingDependencyError
from blu_export.extras import import_extra

_FIXES = {
    "cudaErrorMemoryAllocation": "Use a smaller batch, stop other programs on this GPU, or build with less --batch.",
    "cudaErrorInsufficientDriver": "Install a newer NVIDIA driver; nvidia-smi shows which is there.",
    "cudaErrorSystemDriverMismatch": "Restart: the driver was updated while it was in use.",
    "cudaErrorNoDevice": "No NVIDIA GPU is visible here; look at blu doctor and CUDA_VISIBLE_DEVICES.",
    "cudaErrorInvalidDevice": "There are fewer GPUs; look at blu doctor.",
    "cudaErrorDevicesUnavailable": "Another program holds the GPU exclusively.",
    "cudaErrorECCUncorrectable": "The GPU's memory is faulty; restart it, or use another.",
    "cudaErrorIllegalAddress": "Restart the program; if it happens again, build the engine again.",
    "cudaErrorLaunchFailure": "Restart the program; if it happens again, build the engine again.",
    "cudaErrorUnknown": "Restart the program; look at dmesg for the driver's own message.",
}
LOST = frozenset({
    "cudaErrorAssert", "cudaErrorContained", "cudaErrorContextIsDestroyed", "cudaErrorDeviceUninitialized",
    "cudaErrorECCUncorrectable", "cudaErrorExternalDevice", "cudaErrorHardwareStackError", "cudaErrorIllegalAddress",
    "cudaErrorIllegalInstruction", "cudaErrorInvalidAddressSpace", "cudaErrorInvalidPc", "cudaErrorLaunchFailure",
    "cudaErrorLaunchTimeout", "cudaErrorMisalignedAddress", "cudaErrorMpsClientTerminated",
    "cudaErrorTensorMemoryLeak", "cudaErrorUnknown",
})  # fmt: skip
"""After these every later call of the process fails too; CUDA's documentation says so of most."""
NO_DEVICE = frozenset({
    "cudaErrorNoDevice", "cudaErrorInsufficientDriver", "cudaErrorInvalidDevice", "cudaErrorSystemDriverMismatch",
    "cudaErrorStubLibrary",
})  # fmt: skip


class CudaError(BluError):
    """A CUDA call failed.

    Attributes:
        name: CUDA's own name of the error.
    """

    def __init__(self, name: str, call: str, message: str) -> None:
        what = f"The GPU is lost to this program ({message}, {name} in {call})." if name in LOST else ""
        super().__init__(what or f"{call} failed: {message} ({name}).", _FIXES.get(name, ""))
        self.name = name
        self.lost = name in LOST


class DeviceError(MissingDependencyError):
    """There is no usable GPU."""


class Cuda:
    """CUDA's runtime, on one device.

    Args:
        device: number of the GPU.
        runtime: the module ``cuda.bindings.runtime``; another object with its functions in tests.

    Raises:
        MissingDependencyError: cuda-python is not installed.
        DeviceError: no driver, no GPU, or no GPU of that number.
    """

    def __init__(self, device: int = 0, runtime: Any = None) -> None:
        self.runtime = runtime or import_extra("cuda.bindings.runtime")
        self.device = device
        if not self.call("cudaDriverGetVersion"):
            raise DeviceError("There is no NVIDIA driver here, so no GPU to run on.", "Look at blu doctor.")
        try:
            count = self.call("cudaGetDeviceCount")
            if device >= count:
                raise DeviceError(f"There is no GPU {device}; {count} can be seen.", _FIXES["cudaErrorInvalidDevice"])
            self.select()
            properties = self.call("cudaGetDeviceProperties", device)
        except CudaError as error:
            if error.name not in NO_DEVICE:
                raise
            raise DeviceError(error.what, error.fix) from error
        name = properties.name
        self.name: str = name.decode() if isinstance(name, bytes) else str(name)
        self.capability: tuple[int, int] = (int(properties.major), int(properties.minor))

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime; its result, or a tuple of several.

        Raises:
            CudaError: it returned an error.
        """
        status, *results = getattr(self.runtime, name)(*arguments)
        if status != self.runtime.cudaError_t.cudaSuccess:
            _, message = self.runtime.cudaGetErrorString(status)
            text = message.decode() if isinstance(message, bytes) else str(message)
            raise CudaError(getattr(status, "name", str(status)), name, text)
        return results[0] if len(results) == 1 else tuple(results)

    def select(self) -> None:
        """Make the device current in the calling thread."""
        self.call("cudaSetDevice", self.device)

    def driver(self) -> int:
        """The driver's newest CUDA version, 12080 for 12.8."""
        return int(self.call("cudaDriverGetVersion"))

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes of the device."""
        free, total = self.call("cudaMemGetInfo")
        return int(free), int(total)
