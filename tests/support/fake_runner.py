"""A Runner whose answer is known by hand and whose misbehavior is chosen by the photo; no runtime is needed.

The model file is JSON: ``{"spec": {…}, "seconds": S, "shift": D, "lanes": L}``; ``seconds`` is what a canvas costs,
and loaded for throughput it waits until so many lanes are in use.
On every canvas there are two detections, whose scores tell which photo it was: an ellipse over the whole photo
(class 1, score (mean + shift) / 255) and one in its upper left quarter (class 2, half that score).
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError, ModelFileError
from blu_export.runtime.base import Runner
from blu_export.runtime.options import RunnerOptions
from blu_export.spec import ModelSpec
from blu_export.tensorrt.cuda import DeviceError

CRASH, HANG, REFUSE, LOSE = (255, 0, 255), (0, 255, 255), (255, 255, 0), (255, 0, 0)
"""A photo of this color makes the worker die, stop, raise, or lose its GPU."""


class LostError(BluError):
    lost = True


class FakeRunner(Runner):
    runtime, device, precision = "onnxruntime", "CPU", "float32"  # a known name: another worker asks for it

    def __init__(self, path: str, throughput: bool = False) -> None:
        try:
            content = json.loads(Path(path).read_text())
            self.spec = ModelSpec(**content["spec"])
        except ValueError as error:
            raise ModelFileError(f"{path} is not a fake model.", "Write one.") from error
        self.seconds = content.get("seconds", 0.0)
        self.shift = content.get("shift", 0.0)
        self.throughput_lanes = content.get("lanes", 1)
        self.lanes = self.throughput_lanes if throughput else 1
        self._in_use = threading.Barrier(self.lanes, timeout=60)

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._in_use.wait()
        time.sleep(self.seconds * len(canvas))
        rows = self.spec.detection_max_instances
        detections = np.zeros((len(canvas), rows, 6), np.float32)
        masks = np.zeros((len(canvas), rows, 28, 28), np.float32)
        for index, (pixels, sides) in enumerate(zip(canvas, window.astype(int), strict=True)):
            inside = pixels[sides[0] : sides[2], sides[1] : sides[3]]
            _misbehave(tuple(int(value) for value in inside[len(inside) // 2, inside.shape[1] // 2]))
            height, width = pixels.shape[:2]
            y1, x1, y2, x2 = (sides - [0, 0, 1, 1]) / [height - 1, width - 1, height - 1, width - 1]
            score = (inside.mean() + self.shift) / 255
            detections[index, 0] = y1, x1, y2, x2, 1, score
            detections[index, 1] = y1, x1, (y1 + y2) / 2, (x1 + x2) / 2, 2, score / 2
        y, x = np.ogrid[-1:1:28j, -1:1:28j]
        masks[:, :2] = y**2 + x**2 <= 1
        return detections, masks


def _misbehave(color: tuple[int, ...]) -> None:
    if color == CRASH:
        os.kill(os.getpid(), signal.SIGKILL)
    if color == HANG:
        os.kill(os.getpid(), signal.SIGSTOP)
    if color == REFUSE:
        raise BluError("The fake refuses this photo.")
    if color == LOSE:
        raise LostError("The fake has lost its GPU.")


def load(path: str, options: RunnerOptions) -> Runner:
    return FakeRunner(path, options.throughput)


class NoisyRunner(FakeRunner):
    """Writes more lines to stderr, for each batch, than a pipe holds."""

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        for number in range(2000):
            os.write(2, f"line {number} {'x' * 100}\n".encode())
        return super().run(canvas, window)


def load_noisy(path: str, options: RunnerOptions) -> Runner:
    return NoisyRunner(path)


def load_without_gpu(path: str, options: RunnerOptions) -> Runner:
    raise DeviceError("There is no GPU here.", "Look.")


def write_model(path: Path, seconds: float = 0.0, shift: float = 0.0, lanes: int = 1, **spec: Any) -> Path:
    fields = {"class_names": ["BG", "coat", "shoe"], "image_min_dim": 64, "image_max_dim": 64} | spec
    fields.setdefault("detection_max_instances", 10)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"spec": fields, "seconds": seconds, "shift": shift, "lanes": lanes}))
    temporary.replace(path)
    return path
