"""What exporter, files, runners and servers agree on: tensors, metadata keys, subnetworks, stages, precisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from blu_export.spec import ModelSpec

TARGETS = ("portable", "tensorrt")
"""Forms of the graph: for ONNX Runtime and OpenVINO, and for TensorRT, which lacks NonMaxSuppression."""
PRECISIONS = ("float32", "fp16", "bf16", "int8")
"""Of the subnetworks; box arithmetic is always float32."""


@dataclass(frozen=True)
class Tensor:
    """A graph input or output."""

    name: str
    dtype: str
    """Element type, as NumPy names it."""
    shape: tuple[int | str, ...]
    """Sizes; a name where a dimension is dynamic."""


def graph_inputs(spec: ModelSpec) -> tuple[Tensor, ...]:
    """``canvas`` (RGB) and ``window`` (y1, x1, y2, x2 of the photo on its canvas, pixels)."""
    return (
        Tensor("canvas", "uint8", ("batch", *(spec.canvas or ("height", "width")), spec.image_channel_count)),
        Tensor("window", "float32", ("batch", 4)),
    )


def graph_outputs(spec: ModelSpec) -> tuple[Tensor, ...]:
    """``detections`` (y1, x1, y2, x2, class, score), their ``masks``, and how many rows of both are in use."""
    rows = spec.detection_max_instances
    return (
        Tensor("detections", "float32", ("batch", rows, 6)),
        Tensor("masks", "float32", ("batch", rows, *spec.mask_shape)),
        Tensor("num_detections", "int32", ("batch",)),
    )


class Metadata(StrEnum):
    """Keys of an ONNX file's ``metadata_props``."""

    SPEC = "blu_spec"
    """The ModelSpec, as JSON."""
    TARGET = "blu_target"
    """One of TARGETS."""
    PRECISION = "blu_precision"
    """One of PRECISIONS."""
    FALLBACK_LAYERS = "blu_fallback_layers"
    """JSON: layers that stay in a higher precision, with the reason."""
    PARITY = "blu_parity"
    """JSON: the comparison with the Keras reference at the export."""
    CANVAS = "blu_canvas"
    """JSON: the comparison with the square canvas, of a model that has another."""
    VERSIONS = "blu_versions"
    """JSON: packages that made the file."""


SUBNETWORKS = {
    "trunk": (
        "trunk/image",
        ("trunk/P2", "trunk/P3", "trunk/P4", "trunk/P5", "trunk/rpn_class_logits", "trunk/rpn_bbox"),
    ),
    "box_head": ("box_head/rois", ("box_head/mrcnn_class_logits", "box_head/mrcnn_bbox")),
    "mask_head": ("mask_head/rois", ("mask_head/mrcnn_mask",)),
}
"""Subnetwork -> its input and outputs in the graph. All of its nodes are named ``SUBNETWORK/…``."""

STAGES = {
    "P2": "trunk/P2",
    "P3": "trunk/P3",
    "P4": "trunk/P4",
    "P5": "trunk/P5",
    "rpn_class": "trunk/rpn_class_logits",
    "rpn_bbox": "trunk/rpn_bbox",
    "rois": "proposals/rois",
    "mrcnn_class": "detection/probabilities",
    "mrcnn_bbox": "box_head/mrcnn_bbox",
    "detections": "detections",
    "masks": "masks",
}
"""Intermediate result, as the original names it -> tensor of the graph, in the order of the data flow.

P6 is P5 subsampled and is in none of the forms.
"""

PHOTO_INPUT = "image"
"""Input of a served model: one encoded photo."""
PHOTO_OUTPUTS = {
    "rois": ("INT32", [-1, 4]),
    "class_ids": ("INT32", [-1]),
    "scores": ("FP32", [-1]),
    "masks": ("BOOL", [-1, -1, -1]),
    "masks_rle": ("BYTES", [-1]),
}
"""Output of a served model -> (datatype of the Open Inference Protocol, shape)."""
MAX_MASK_BYTES = 2**28
"""Of full masks in one answer, one byte for each pixel and instance; beyond it only run-length encoding is given."""
MAX_PHOTO_PIXELS = 50_000_000
"""Height times width that servers take unless told otherwise."""


def config_type(datatype: str) -> str:
    """A datatype of the Open Inference Protocol in the words of Triton's ModelConfig."""
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
