"""Keras: the reference that the other runtimes are compared with."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import UsageError
from blu_export.extras import import_extra
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec


class KerasRunner(Runner):
    """Runs Keras weights (.h5, .weights.h5, .keras) on TensorFlow.

    Args:
        path: the weights.
        device: ``cpu``, or ``gpu`` with ``:1`` behind it for the second; None takes what TensorFlow does.
        class_names: see ``model.weights.Weights.make_spec``.
        settings: ``FIELD=VALUE`` changes of the spec.

    Raises:
        ModelFileError: the weights cannot be read, or do not fit.
        UsageError: no such device, or the names or settings do not fit.
        MissingDependencyError: TensorFlow or Keras is not installed.
    """

    runtime = "keras"
    precision = "float32"

    def __init__(
        self,
        path: str | os.PathLike[str],
        device: str | None = None,
        class_names: Sequence[str] | None = None,
        settings: Sequence[str] = (),
    ) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets on stderr otherwise
        tf = self._tf = import_extra("tensorflow")
        import_extra("keras")
        from blu_export.model.weights import build_model

        known = [found.name.removeprefix("/device:") for found in tf.config.list_logical_devices()]
        self._device = device and (device if ":" in device else f"{device}:0").upper().replace("CUDA", "GPU")
        if self._device and self._device not in known:
            raise UsageError(f"TensorFlow has no device '{device}'.", f"It has {', '.join(known)}.")
        with tf.device(self._device):
            self.model, self.report = build_model(path, class_names, settings)
        self.spec: ModelSpec = self.model.spec
        self.device = self._device or ("GPU:0" if "GPU:0" in known else "CPU")

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        detections, masks, _ = self.run_stages(canvas, window)
        return detections, masks

    def run_stages(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, NDArray[np.float32]]]:
        """``run``, and the tensors of ``mask_rcnn.STAGES`` by name."""
        with self._tf.device(self._device):
            detections, masks, stages = self.model.detect(canvas, window)
        return detections, masks, {name: value.numpy() for name, value in stages.items()}
