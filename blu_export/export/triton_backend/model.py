"""Photos in, detections out: the model of this repository that clients call, for Triton's Python backend.

It decodes a photo, puts it on the network's canvas, asks Triton for the network's answer (another model of
this repository, where requests of all instances meet in batches) and turns that into pixels of the photo.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

# The modules that lie beside this file, not others that may be installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from blu_export.detections import Detections
from blu_export.errors import BluError
from blu_export.image import Molded, decode, mold, stack, unmold
from blu_export.spec import ModelSpec


class TritonPythonModel:
    """Triton calls ``initialize`` once per instance, then ``execute`` with the requests that wait."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read what config.pbtxt says."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.outputs = [output["name"] for output in config["output"]]
        self.spec = ModelSpec.from_json(parameters["spec"], "config.pbtxt")
        self.network = parameters["network"]
        self.max_pixels = int(parameters["max_pixels"])
        self.max_mask_bytes = int(parameters["max_mask_bytes"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response per request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        try:
            (photo,) = pb_utils.get_input_tensor_by_name(request, "image").as_numpy().ravel()
            molded = mold(decode(photo, max_pixels=self.max_pixels, channels=self.spec.image_channel_count), self.spec)
            answer = self._run(molded)
            if answer.has_error():
                return pb_utils.InferenceResponse(error=answer.error())
            detections, masks = (
                pb_utils.get_output_tensor_by_name(answer, name).as_numpy()[0] for name in ("detections", "masks")
            )
            found = unmold(detections, masks, molded, self.spec)
            wanted = [name for name in self.outputs if name in request.requested_output_names()]
            return pb_utils.InferenceResponse([pb_utils.Tensor(name, self._output(name, found)) for name in wanted])
        except BluError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG))

    def _run(self, molded: Molded) -> Any:
        canvas, window = stack([molded])
        request = pb_utils.InferenceRequest(
            model_name=self.network,
            inputs=[pb_utils.Tensor("canvas", canvas), pb_utils.Tensor("window", window)],
            requested_output_names=["detections", "masks"],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        )
        return request.exec()

    def _output(self, name: str, found: Detections) -> np.ndarray[Any, Any]:
        if name == "masks_rle":
            return np.array([json.dumps(rle).encode() for rle in found.rles()], dtype=np.object_)
        if name == "masks":
            size = math.prod(found.image_size) * len(found)
            if size > self.max_mask_bytes:
                raise BluError(f"The masks would be {size} bytes.", "Ask for the output masks_rle instead.")
            return np.ascontiguousarray(found.masks)
        array: np.ndarray[Any, Any] = getattr(found, name)
        return array
