"""torchvision's Mask R-CNN R-50-FPN as a peer of the speed benchmark.

It runs in a worker process: PyTorch's compiler ``triton`` crashes when it is loaded after TensorFlow.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import numpy as np

from blu_export.errors import BluError, MissingDependencyError
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec
from blu_export.workers.channel import Channel, ClosedError, error_as_json
from blu_export.workers.memory import anonymous_memory
from blu_export.workers.owner import Child


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
        self._pixels = anonymous_memory()
        config = {
            "pixels": self._pixels,
            "num_classes": spec.num_classes,
            "side": spec.image_max_dim,
            "threads": threads,
        }
        self._child = Child(f"{__name__}:main", config, handles=[self._pixels])
        try:
            self._ask()
        except BaseException:
            self.close()
            raise

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``."""
        os.pwrite(self._pixels, canvas.tobytes(), 0)
        self._ask(shape=canvas.shape)
        rows = self.spec.detection_max_instances
        shape = (len(canvas), rows, *self.spec.mask_shape)
        return np.zeros((len(canvas), rows, 6), np.float32), np.zeros(shape, np.float32)

    def close(self) -> None:
        """End the process."""
        self._child.close()
        os.close(self._pixels)

    def _ask(self, **message: Any) -> None:
        """Wait for the worker's next message, which answers ours if there is one."""
        try:
            if message:
                self._child.channel.send(**message)
            self._child.channel.receive()
        except ClosedError:
            raise BluError("The process of torchvision has ended.") from None


def main(channel: Channel, config: dict[str, Any]) -> None:
    """The worker: runs the network on each batch of canvases, uint8 [B, H, W, 3], of which it is told the shape."""
    try:
        import torch
        from torchvision.models.detection import maskrcnn_resnet50_fpn

        torch.set_num_threads(config["threads"])
        side, num_classes = config["side"], config["num_classes"]
        model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes, min_size=side, max_size=side
        ).eval()
        channel.send(ready=True)
        for message in channel:
            shape = message["shape"]
            canvas = np.frombuffer(os.pread(config["pixels"], int(np.prod(shape)), 0), np.uint8).reshape(shape)
            pixels = torch.from_numpy(canvas.transpose(0, 3, 1, 2).astype(np.float32) / 255)
            with torch.inference_mode():
                model(list(pixels))
            channel.send(done=True)
    except Exception as error:  # torch's errors share no base class; the owner reports it
        channel.send(error=error_as_json(BluError(f"torchvision failed: {type(error).__name__}: {error}")))
