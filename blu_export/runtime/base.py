"""Runner: the one thing that differs between runtimes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.spec import ModelSpec


class Runner(ABC):
    """A loaded model that turns canvases into raw detections.

    ``run`` may be called from several threads.
    """

    spec: ModelSpec
    runtime: str
    """Short name of the runtime: ``keras``, ``onnxruntime``, ``openvino``, ``tensorrt``."""
    device: str
    """What it runs on, as shown to people: ``CPU``, ``CUDA: Tesla T4``."""
    precision: str
    """``float32``, ``fp16``, ``bf16`` or ``int8``: of the subnetworks."""
    lanes: int = 1
    """Calls of ``run`` that go best at the same time, where there are many photos to do."""
    throughput_lanes: int = 1
    """The lanes that the same model has, or would have, loaded with ``RunnerOptions.throughput``."""
    settles_after: int = 0
    """Canvases of one size, one a call, after which that size runs faster than before."""

    @abstractmethod
    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Detect on a batch of canvases.

        Args:
            canvas: uint8 [B, H, W, 3], RGB, as ``image.mold`` makes it.
            window: float32 [B, 4], (y1, x1, y2, x2) of the photo on its canvas, pixels.

        Returns:
            detections: float32 [B, N, 6], rows (y1, x1, y2, x2, class id, score); boxes in
                normalized coordinates of the canvas, best score first, unused rows zero.
            masks: float32 [B, N, h, w] in 0..1, the detected class only; unused rows zero.
        """

    def close(self) -> None:
        """Give back the device memory; the runner is not usable afterwards."""

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def run_error(runtime: str, canvas: NDArray[np.uint8], error: Exception) -> BluError:
    """What a native library's failure on a batch of canvases [B, H, W, C] is reported as."""
    return BluError(
        f"{runtime} failed on {len(canvas)} canvases of {canvas.shape[1]}x{canvas.shape[2]}: {error}",
        "If memory ran out, use a smaller batch.",
    )
