"""OpenVINO: the portable file on Intel and ARM processors."""

from __future__ import annotations

import os
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import BluError, ModelFileError, UsageError
from blu_export.extras import import_extra
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.onnx_file import OnnxFile, read_onnx, spec_of


class OpenVinoRunner(Runner):
    """Runs an exported .onnx file in OpenVINO.

    Args:
        model: path, or a file that was already read.
        device: ``cpu`` or None.
        threads: of one network; None takes the cores that this process may use.
        source: names a model that was already read in errors.

    Raises:
        ModelFileError: corrupt, foreign, or refused by OpenVINO.
        MissingDependencyError: openvino is not installed.
    """

    runtime = "openvino"

    def __init__(
        self,
        model: str | os.PathLike[str] | OnnxFile,
        device: str | None = None,
        threads: int | None = None,
        source: str = "model",
    ) -> None:
        if not isinstance(model, OnnxFile):
            source, model = os.fspath(model), read_onnx(model)
        self.spec = spec_of(model, source)
        self.precision = model.precision
        if device not in (None, "cpu"):
            raise UsageError(f"The OpenVINO runner works on the processor, not on '{device}'.", "Use --device cpu.")
        self.device = "CPU"
        openvino = import_extra("openvino")
        settings = {
            # On processors with bf16 units OpenVINO would put the whole graph in bf16, the box
            # coordinates too, and lose most detections. Quantised convolutions stay int8 under this hint.
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads or usable_cores(),
        }
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(model.data), "CPU", settings)
        except Exception as error:  # the native library raises RuntimeError and its own subclasses
            raise ModelFileError(
                f"OpenVINO {openvino.__version__} refuses {source}: {error}",
                "Export the model again, upgrade openvino, or use --runtime onnxruntime.",
            ) from error
        # A request holds the buffers of one call: as many are made as threads call at once.
        self._idle: SimpleQueue[Any] = SimpleQueue()

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See Runner.run."""
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer({"canvas": canvas, "window": window}, share_inputs=True)
            # Copies: the request's own buffers are written again by the next call.
            detections = request.get_tensor("detections").data.copy()
            masks = request.get_tensor("masks").data.copy()
        except Exception as error:  # as above
            raise BluError(
                f"OpenVINO failed on {len(canvas)} canvases of {canvas.shape[1]}x{canvas.shape[2]}: {error}",
                "If memory ran out, use a smaller batch.",
            ) from error
        self._idle.put(request)
        return detections, masks

    def close(self) -> None:
        """Give back the compiled model's memory."""
        self._idle = SimpleQueue()
        self._compiled = None
