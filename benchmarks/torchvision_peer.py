"""torchvision's Mask R-CNN R-50-FPN as a peer of the speed benchmark.

It runs in a process of its own: PyTorch's compiler ``triton`` crashes when it is loaded after TensorFlow.
"""

from __future__ import annotations

from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from blu_export.errors import BluError, MissingDependencyError
from blu_export.runtime.base import Runner, run_error
from blu_export.spec import ModelSpec


class TorchvisionRunner(Runner):
    """The network with random weights on the same canvas: what it costs.

    It finds nothing of ours: the detections it gives are empty.

    Raises:
        MissingDependencyError: torchvision is not installed.
        BluError: it cannot be loaded.
    """

    runtime = "torchvision R-50-FPN"
    device = "CPU"
    precision = "float32"

    def __init__(self, spec: ModelSpec, threads: int) -> None:
        if find_spec("torchvision") is None:
            raise MissingDependencyError("torchvision is not installed.", "pip install torchvision")
        self.spec = spec
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = theirs, spec.num_classes, spec.image_max_dim, threads
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._receive()
        except RuntimeError as error:
            self.close()
            raise BluError(f"torchvision cannot be loaded here: {error}") from error

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``."""
        try:
            self._connection.send(canvas)
            self._receive()
        except (OSError, RuntimeError) as error:
            raise run_error("torchvision", canvas, error) from error
        rows = self.spec.detection_max_instances
        shape = (len(canvas), rows, *self.spec.mask_shape)
        return np.zeros((len(canvas), rows, 6), np.float32), np.zeros(shape, np.float32)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()

    def _receive(self) -> None:
        try:
            error = self._connection.recv()
        except EOFError:
            error = "its process ended"
        if error is not None:
            raise RuntimeError(error)


def _serve(connection: Connection, num_classes: int, side: int, threads: int) -> None:
    """Answer each batch of canvases, uint8 [B, H, W, 3], with None or an error's text, until the other end closes."""
    try:
        import torch
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        torch.set_num_threads(threads)
        model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=side, max_size=side
        ).eval()
        connection.send(None)
        while True:
            canvas = connection.recv()
            pixels = torch.from_numpy(canvas.transpose(0, 3, 1, 2).astype(np.float32) / 255)
            with torch.inference_mode():
                model(list(pixels))
            connection.send(None)
    except EOFError:
        return
    except Exception as error:  # torch's errors share no base class; the other end reports it
        connection.send(f"{type(error).__name__}: {error}")
