"""The first diverging stage of two models: their intermediate tensors, compared along the data flow.

Keras gives its stages by name. An ONNX file gives them once they are named as outputs too, since the
exporter keeps the names of the layers. Rows of proposals are paired before they are compared: two
that swap places in a near-tie are not drift.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from blu_export.boxes import iou
from blu_export.contract import STAGES
from blu_export.errors import ModelFileError, UsageError
from blu_export.extras import import_extra
from blu_export.image import Molded
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.onnx_file import read_onnx

if TYPE_CHECKING:
    from blu_export.runtime.keras import KerasRunner

Array = NDArray[Any]
Stages = dict[str, Array]

DRIFT_LIMITS = {"float32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.25}
"""By precision: a stage beyond it has drifted. See StageDrift.drift."""
SAME_BOX = 0.9
"""Rows whose boxes overlap at least this much are the same proposal or detection."""


@dataclass(frozen=True)
class StageDrift:
    """One stage in both models."""

    name: str
    drift: float
    """Root mean square of the difference over that of the reference; rows that exist in both models only."""
    lost: float
    """Share of rows (proposals, detections) that exist in only one of the two."""
    limit: float

    @property
    def drifted(self) -> bool:
        """Beyond the limit, in values or (ten times the limit) in rows; also where it is not a number."""
        return not (self.drift <= self.limit and self.lost <= min(10 * self.limit, 1))


def compare_stages(reference: Stages, candidate: Stages, precision: str) -> list[StageDrift]:
    """Drift of each stage on one canvas; ``precision`` is the candidate's."""
    limit = DRIFT_LIMITS[precision]
    pairing = dict.fromkeys(("rois", "mrcnn_class", "mrcnn_bbox"), _pair_rows(reference["rois"], candidate["rois"]))
    pairing |= dict.fromkeys(("detections", "masks"), _pair_rows(reference["detections"], candidate["detections"]))
    found = []
    for name in STAGES:
        first, second, lost = reference[name], candidate[name], 0.0
        if name in pairing:
            rows, columns, lost = pairing[name]
            first, second = first[rows], second[columns]
        found.append(StageDrift(name, _relative_error(first, second), lost, limit))
    return found


def first_drift(drifts: list[StageDrift]) -> StageDrift | None:
    """The first diverging stage; None if there is none."""
    return next((stage for stage in drifts if stage.drifted), None)


def stage_source(runner: Runner, path: str | os.PathLike[str]) -> Callable[[Molded], Stages]:
    """A function that gives the tensors of STAGES for a canvas, without the batch axis, in Keras' shapes.

    The stages of an ``.onnx`` file are always computed by ONNX Runtime.

    Raises:
        UsageError: this kind of model cannot show its stages.
        ModelFileError: the file lacks the exporter's tensor names.
    """
    if runner.runtime == "keras":
        from blu_export.runtime.keras import KerasRunner

        assert isinstance(runner, KerasRunner)
        return partial(_keras_stages, runner)
    if Path(path).suffix.lower() == ".onnx":
        return _OnnxStages(path)
    raise UsageError(f"{path} cannot show intermediate tensors.", "Compare the .onnx file it was built from.")


def _keras_stages(runner: KerasRunner, molded: Molded) -> Stages:
    _, _, found = runner.run_stages(molded.canvas[None], molded.window[None])
    return {name: found[name][0] for name in STAGES}


class _OnnxStages:
    """An ONNX file in ONNX Runtime, with its intermediate tensors as outputs."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        onnx, ort = import_extra("onnx"), import_extra("onnxruntime")
        model = onnx.load_from_string(read_onnx(path).data)
        made = {name for node in model.graph.node for name in node.output}
        if lacking := sorted(set(STAGES.values()) - made):
            raise ModelFileError(
                f"{os.fspath(path)} has no tensor named {lacking[0]}.", "Export it with this version of blu."
            )
        del model.graph.output[:]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in STAGES.values())
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = usable_cores()
        self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, molded: Molded) -> Stages:
        values = self._session.run(
            list(STAGES.values()), {"canvas": molded.canvas[None], "window": molded.window[None]}
        )
        found = {name: value.astype(np.float32) for name, value in zip(STAGES, values, strict=True)}
        classes = found["mrcnn_class"].shape[-1]
        for level in ("P2", "P3", "P4", "P5"):
            found[level] = found[level].transpose(0, 2, 3, 1)
        found["rpn_class"] = _softmax(found["rpn_class"])
        found["mrcnn_class"] = found["mrcnn_class"].reshape(1, -1, classes)
        found["mrcnn_bbox"] = found["mrcnn_bbox"].reshape(1, -1, classes, 4)
        return {name: value[0] for name, value in found.items()}


def _pair_rows(a: Array, b: Array) -> tuple[Array, Array, float]:
    """Rows (box first, then perhaps class and score) that are each other's best match, and the share without one."""
    used_a, used_b = (np.flatnonzero(np.any(rows != 0, axis=1)) for rows in (a, b))
    if not len(used_a) or not len(used_b):
        return used_a[:0], used_b[:0], float(len(used_a) != len(used_b))
    overlap = iou(a[used_a, :4], b[used_b, :4])
    if a.shape[1] > 4:
        overlap = overlap * (a[used_a, 4, None] == b[used_b, 4])
    best = overlap.argmax(axis=1)
    rows = np.arange(len(used_a))
    mutual = (overlap.argmax(axis=0)[best] == rows) & (overlap[rows, best] >= SAME_BOX)
    lost = 1 - np.count_nonzero(mutual) / max(len(used_a), len(used_b))
    return used_a[mutual], used_b[best[mutual]], lost


def _relative_error(reference: Array, candidate: Array) -> float:
    if reference.shape != candidate.shape:
        raise UsageError(f"A stage has shape {reference.shape} in one model and {candidate.shape} in the other.")
    scale = float(np.sqrt(np.mean(np.square(reference, dtype=np.float64)))) if reference.size else 0.0
    error = float(np.sqrt(np.mean(np.square(candidate - reference, dtype=np.float64)))) if reference.size else 0.0
    return error / scale if scale else error


def _softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalized: Array = powers / powers.sum(axis=-1, keepdims=True)
    return normalized
