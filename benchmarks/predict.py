"""The peer: ``keras.Model.predict``, as users of the original program call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blu_export.runtime.base import Runner


class PredictRunner(Runner):
    """The whole model behind one ``predict``, batch after batch."""

    runtime = "keras predict"
    device = "CPU"
    precision = "float32"

    def __init__(self, weights: Path) -> None:
        import keras

        from blu_export.model.given import Given
        from blu_export.runtime.keras import KerasRunner

        reference = KerasRunner(weights, given=Given.of(settings=["image_resize_mode=square"]))
        model, self.spec = reference.model, reference.spec
        anchors = model.anchors(self.spec.canvas)

        class Predict(keras.Model):
            def call(self, inputs: Any) -> Any:
                stages = model.forward(*inputs, anchors)
                return stages["detections"], stages["masks"]

        self.model = Predict()

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``."""
        return self.model.predict((canvas, window), batch_size=len(canvas), verbose=0)
