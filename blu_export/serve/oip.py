"""The Open Inference Protocol (KServe v2) over HTTP: the model in its words, and answers with binary tensors.

One model, one photo per request:

    input   image       BYTES [1]        an encoded photo; or UINT8 [H, W, 3], RGB
    outputs rois        INT32 [N, 4]     (y1, x1, y2, x2), pixels
            class_ids   INT32 [N]
            scores      FP32  [N]
            masks       BOOL  [H, W, N]
            masks_rle   BYTES [N]        COCO run-length encoding, JSON

Reference: https://github.com/kserve/open-inference-protocol and Triton's ``extension_binary_data``.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.contract import MAX_MASK_BYTES, PHOTO_INPUT, PHOTO_OUTPUTS, config_type
from blu_export.detections import Detections
from blu_export.serve.errors import BadRequestError, NotFoundError, TooLargeError, megabytes
from blu_export.serve.oip_request import MAX_JSON_ELEMENTS, Wanted
from blu_export.serve.worker_process import ModelInfo

EXTENSIONS = ("binary_tensor_data", "model_configuration")
COPIED = 2**20
"""Bytes of an answer that are copied at a time."""
PLATFORM = "blu_mask_rcnn"


def model_metadata(info: ModelInfo) -> dict[str, Any]:
    """The answer to ``GET /v2/models/NAME``."""
    return {
        "name": info.name,
        "versions": ["1"],
        "platform": PLATFORM,
        "inputs": [{"name": PHOTO_INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in PHOTO_OUTPUTS.items()],
    }


def model_config(info: ModelInfo) -> dict[str, Any]:
    """The answer to ``GET /v2/models/NAME/config``, in the form of Triton's ModelConfig.

    The class names are in the parameter ``spec``, as in the repositories of ``blu export triton``.
    """
    return {
        "name": info.name,
        "platform": PLATFORM,
        "backend": "blu",
        "max_batch_size": 0,  # a request holds one photo
        "input": [{"name": PHOTO_INPUT, "data_type": config_type("BYTES"), "dims": [1]}],
        "output": [
            {"name": name, "data_type": config_type(kind), "dims": shape}
            for name, (kind, shape) in PHOTO_OUTPUTS.items()
        ],
        "parameters": {"spec": {"string_value": info.spec.to_json()}},
    }


def output_array(name: str, found: Detections) -> NDArray[Any]:
    """One output of PHOTO_OUTPUTS; BYTES as an array of bytes objects."""
    if name == "masks_rle":
        return np.array([json.dumps(rle).encode() for rle in found.rles()] or [], dtype=object)
    if name == "masks":
        check_mask_size(found, "Ask for the output masks_rle instead.")
        masks: NDArray[np.bool_] = found.masks
        return masks
    array: NDArray[Any] = getattr(found, name)
    return array


def check_mask_size(found: Detections, fix: str) -> None:
    """Raise TooLargeError, which says ``fix``, where full masks would be more than MAX_MASK_BYTES."""
    size = math.prod(found.image_size) * len(found)
    if size > MAX_MASK_BYTES:
        raise TooLargeError(f"The masks would be {megabytes(size)}.", fix)


def array_bytes(array: NDArray[Any]) -> bytes | memoryview:
    """A tensor's binary form: row-major, little-endian; BYTES elements with their lengths before them."""
    if array.dtype == object:
        return b"".join(len(each).to_bytes(4, "little") + each for each in array)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def joined(pieces: Iterable[bytes | memoryview]) -> bytes:
    """``b"".join``, a little at a time: a hundred megabytes at once would hold up all threads, and with them health."""
    buffer = io.BytesIO()
    for piece in pieces:
        view = memoryview(piece)
        for start in range(0, len(view), COPIED):
            buffer.write(view[start : start + COPIED])
    return buffer.getvalue()


def format_answer(wanted: Wanted, info: ModelInfo, found: Detections) -> tuple[bytes, int | None]:
    """(body, bytes of its JSON part); None where all of it is JSON."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes | memoryview] = []
    for name, as_binary in wanted.outputs.items():
        array = output_array(name, found)
        output: dict[str, Any] = {"name": name, "datatype": PHOTO_OUTPUTS[name][0], "shape": list(array.shape)}
        if as_binary:
            binary.append(array_bytes(array))
            output["parameters"] = {"binary_data_size": len(binary[-1])}
        elif array.size > MAX_JSON_ELEMENTS:
            raise BadRequestError(f"The output {name} has {array.size} elements.", "Ask for it as binary data.")
        else:
            flat = array.ravel().tolist()
            output["data"] = [each.decode() for each in flat] if array.dtype == object else flat
        outputs.append(output)
    answer = {"id": wanted.id} if wanted.id else {}
    head = json.dumps(answer | {"model_name": info.name, "model_version": "1", "outputs": outputs}).encode()
    return joined([head, *binary]), len(head) if binary else None


def check_model(info: ModelInfo, name: str, version: str = "") -> None:
    """Raise NotFoundError unless the server has that model."""
    if name != info.name or version not in ("", "1"):
        raise NotFoundError(f"There is no model '{name[:80]}' {version[:20]}.", f"There is '{info.name}', version 1.")
