"""Peers: what users of a Keras Mask R-CNN would otherwise have, each on the original's square canvas.

One that cannot be made here, or whose package is not installed, raises a BluError with the reason, which the
benchmark lists.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.naive import NaiveRunner, export_naive, forward
from benchmarks.predict import PredictRunner
from benchmarks.torchvision_peer import TorchvisionRunner
from blu_export.benchmark.candidates import Candidate
from blu_export.detector import Detector
from blu_export.errors import BluError
from blu_export.extras import import_extra
from blu_export.model.given import Given
from blu_export.model.weights import read_weights
from blu_export.runtime.base import Runner
from blu_export.runtime.keras import KerasRunner

SQUARE = ["image_resize_mode=square"]
Say = Callable[[str], None]


def keras_on_square(model: str, weights: Path) -> Candidate:
    """The baseline: the Keras model in a ``tf.function``."""

    def open_it(threads: int) -> Detector:
        return Detector(KerasRunner(weights, given=Given.of(settings=SQUARE)))

    return Candidate(model, "keras tf.function", "float32", open_it, weights, ours=False)


def peers_of(model: str, weights: Path, folder: Path, say: Say) -> list[Candidate]:
    """``keras.Model.predict``, tf2onnx's and Keras' own ONNX files in ONNX Runtime, OpenVINO's own conversion, and
    torchvision's Mask R-CNN (another network, of equal input).
    """

    def open_naive(threads: int) -> Detector:
        naive, reference = folder / f"{model}.naive.onnx", KerasRunner(weights, given=Given.of(settings=SQUARE))
        if not naive.exists():
            say(f"converting {model} with tf2onnx's own handlers (minutes)")
            export_naive(reference.model, naive)
        return Detector(NaiveRunner(naive, reference.spec, threads))

    def open_keras_export(threads: int) -> Detector:
        path, reference = folder / f"{model}.keras-export.onnx", KerasRunner(weights, given=Given.of(settings=SQUARE))
        if not path.exists():
            say(f"exporting {model} with Keras' own model.export (minutes)")
            export_by_keras(reference.model, path)
        return Detector(NaiveRunner(path, reference.spec, threads))

    def open_torchvision(threads: int) -> Detector:
        spec = read_weights(weights).make_spec(Given.of(settings=SQUARE))
        return Detector(TorchvisionRunner(spec, threads))

    makers = {
        "keras predict": lambda threads: Detector(PredictRunner(weights)),
        "onnxruntime, naive tf2onnx": open_naive,
        "onnxruntime, keras export": open_keras_export,
        "openvino, convert_model": lambda threads: Detector(ConvertedRunner(weights, threads)),
    }
    peers = [Candidate(model, runtime, "float32", open_it, ours=False) for runtime, open_it in makers.items()]
    other = Candidate(model, TorchvisionRunner.runtime, "float32", open_torchvision, ours=False, same_network=False)
    return [*peers, other]


def export_by_keras(model: Any, path: Path) -> None:
    """``model.export(path, format="onnx")`` of the forward pass, as Keras' documentation shows it.

    Raises:
        BluError: Keras cannot.
    """
    import keras
    import tensorflow as tf

    spec = model.spec
    signature = [
        keras.InputSpec(shape=(1, *spec.canvas, 3), dtype="float32"),
        keras.InputSpec(shape=(1, 4), dtype="float32"),
    ]

    class Whole(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.box_head, self.mask_head = model.trunk, model.box_head, model.mask_head
            self.built = True

        def call(self, canvas: Any, window: Any) -> Any:
            return forward(model, canvas, window)

    try:
        Whole().export(str(path), format="onnx", input_signature=signature, verbose=False)
    except (ValueError, TypeError, RuntimeError, NotImplementedError, tf.errors.OpError) as error:
        raise BluError(f"Keras cannot export this model: {str(error).splitlines()[0]}") from error


class ConvertedRunner(Runner):
    """``openvino.convert_model`` of the Keras model's forward pass: float canvas in, masks of every class out."""

    runtime = "openvino, convert_model"
    device = "CPU"
    precision = "float32"

    def __init__(self, weights: Path, threads: int) -> None:
        import tensorflow as tf

        openvino = import_extra("openvino")
        model = KerasRunner(weights, given=Given.of(settings=SQUARE)).model
        self.spec = model.spec
        function = tf.function(
            lambda canvas, window: forward(model, canvas, window),
            input_signature=[
                tf.TensorSpec([1, *self.spec.canvas, 3], tf.float32),
                tf.TensorSpec([1, 4], tf.float32),
            ],
        )
        try:
            graph = openvino.convert_model(function.get_concrete_function())
            settings = {
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            self.request = openvino.Core().compile_model(graph, "CPU", settings).create_infer_request()
        except Exception as error:  # the native library raises RuntimeError and its own subclasses
            raise BluError(f"OpenVINO cannot convert this model: {' '.join(str(error).split())[:300]}") from error

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``; batch 1 only."""
        if len(canvas) > 1:
            raise BluError("This conversion takes one photo at a time.")
        found = self.request.infer([canvas.astype(np.float32), window], share_inputs=True)
        detections, masks = sorted((np.array(value) for value in found.values()), key=np.ndim)
        class_ids = detections[0, :, 4].astype(np.int64)
        return detections, masks[np.arange(len(class_ids)), :, :, class_ids][None]
