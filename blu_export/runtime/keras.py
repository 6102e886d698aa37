"""Keras: the reference that the other runtimes are compared with."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import UsageError
from blu_export.extras import import_extra
from blu_export.model.given import NOTHING, Given
from blu_export.runtime.base import Runner

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN


class KerasRunner(Runner):
    """Runs Keras weights (.h5, .weights.h5, .keras) on TensorFlow.

    Args:
        path: the weights.
        device: ``cpu``, or ``gpu`` with ``:1`` appended for the second; None takes what TensorFlow does.
        given: what the user says about the weights.

    Raises:
        ModelFileError: the weights cannot be read, or do not fit.
        UsageError: no such device, or the names or settings do not fit.
        MissingDependencyError: TensorFlow or Keras is not installed.
    """

    runtime = "keras"
    precision = "float32"

    @classmethod
    def of_model(cls, model: MaskRCNN) -> KerasRunner:
        """Runs a model that is already there, wherever TensorFlow put it."""
        runner = cls.__new__(cls)
        runner._use(model, None)
        return runner

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str | None = None,
        given: Given = NOTHING,
    ) -> None:
        tf = import_extra("tensorflow")
        import_extra("keras")
        from blu_export.model.weights import check_weights, keras_model, read_weights

        known = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
        if device is not None:
            asked, device = device, (device if ":" in device else f"{device}:0").upper().replace("CUDA", "GPU")
            if device not in known:
                raise UsageError(f"TensorFlow has no device '{asked}'.", f"It has {', '.join(known)}.")
        with tf.device(device):
            weights = read_weights(path)
            spec = weights.make_spec(given)
            self.report = check_weights(weights, spec, given.ignore_layers)
            model = keras_model(weights, spec)
        self._use(model, device)

    def _use(self, model: MaskRCNN, device: str | None) -> None:
        import tensorflow as tf

        self.model = model
        self.spec = model.spec
        self._device = device
        self.device = device or ("GPU:0" if tf.config.list_logical_devices("GPU") else "CPU")

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        detections, masks, _ = self.run_stages(canvas, window)
        return detections, masks

    def run_stages(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """``run``, and the tensors of ``contract.STAGES`` by name."""
        import tensorflow as tf

        with tf.device(self._device):
            detections, masks, stages = self.model.detect(canvas, window)
        return detections, masks, {name: value.numpy() for name, value in stages.items()}
