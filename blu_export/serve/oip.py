"""The Open Inference Protocol (KServe v2) over HTTP: requests and answers as bytes, with the binary tensor extension.

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

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.contract import MAX_MASK_BYTES, PHOTO_INPUT, PHOTO_OUTPUTS, config_type
from blu_export.detections import Detections
from blu_export.serve.errors import BadRequestError, NotFoundError, TooLargeError
from blu_export.serve.worker_process import ModelInfo

HEADER = "Inference-Header-Content-Length"
MAX_HEADER_DIGITS = 20
"""Digits of that header: no body has a longer size, and ``int`` raises an error of its own beyond 4,300."""
EXTENSIONS = ("binary_tensor_data", "model_configuration")
PLATFORM = "blu_mask_rcnn"
MAX_JSON_ELEMENTS = 1_000_000
"""Of an output as a JSON list; larger ones only come as binary data."""


@dataclass(frozen=True)
class InferRequest:
    """One photo, and which outputs are wanted."""

    id: str
    photo: Any
    """Encoded bytes, or uint8 [H, W, 3] RGB."""
    outputs: dict[str, bool]
    """Wanted output -> whether as binary data."""


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


def parse_request(body: bytes, header_length: str | None) -> InferRequest:
    """Read the body of an infer request.

    Args:
        body: JSON, followed by the binary data of the inputs that have some.
        header_length: bytes of the JSON part, the header HEADER; None: all.

    Raises:
        BadRequestError: it is not a valid request for our model.
    """
    end = len(body) if header_length is None else _json_length(header_length, len(body))
    try:
        request = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The request is no JSON: {error}.") from error
    try:
        inputs = {each["name"]: each for each in request["inputs"]}
        default = bool(request.get("parameters", {}).get("binary_data_output", False))
        wanted = {
            each["name"]: bool(each.get("parameters", {}).get("binary_data", default))
            for each in request.get("outputs") or [{"name": name} for name in PHOTO_OUTPUTS]
        }
        tensor = inputs.pop(PHOTO_INPUT, None)
        if tensor is None or inputs:
            raise BadRequestError(f"The model has one input, '{PHOTO_INPUT}'.")
        shape, parameters = tensor["shape"], tensor.get("parameters", {})
        size = parameters.get("binary_data_size")
        if size is None:
            photo = _photo_of_json(tensor["datatype"], shape, tensor["data"])
        elif not isinstance(size, int) or size != len(body) - end:
            raise BadRequestError(f"binary_data_size is {size!r}, but {len(body) - end} bytes follow the JSON.")
        else:
            photo = photo_of_bytes(tensor["datatype"], shape, body[end:])
        return InferRequest(str(request.get("id", "")), photo, check_outputs(wanted))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequestError(f"The request is incomplete or malformed: {error!r}.") from error


def _json_length(text: str, size: int) -> int:
    """The header HEADER of a body of ``size`` bytes."""
    if not text.isdecimal() or len(text) > MAX_HEADER_DIGITS or int(text) > size:
        raise BadRequestError(f"{HEADER} is {text[:40]}, but the body has {size} bytes.")
    return int(text)


def photo_of_bytes(datatype: str, shape: Sequence[int], data: bytes) -> bytes | NDArray[np.uint8]:
    """The input from its binary form: a BYTES element has its length before it, as a little-endian uint32."""
    if datatype == "UINT8":
        _check_pixels(shape)
        if math.prod(shape) != len(data):
            raise BadRequestError(f"The shape {list(shape)} does not have {len(data)} elements.")
        return np.frombuffer(data, np.uint8).reshape(shape)
    _check_encoded(datatype, shape)
    if len(data) < 4 or int.from_bytes(data[:4], "little") != len(data) - 4:
        raise BadRequestError("The BYTES element does not have the length that it says.")
    return data[4:]


def _photo_of_json(datatype: str, shape: Sequence[int], data: Any) -> bytes | NDArray[np.uint8]:
    """The input from JSON: base64 for an encoded photo, numbers for pixels."""
    if datatype == "UINT8":
        _check_pixels(shape)
        try:
            pixels = np.array(data)
        except ValueError as error:
            raise BadRequestError(f"The data of '{PHOTO_INPUT}' are no pixels: {error}.") from error
        if pixels.dtype.kind != "i" or pixels.size != math.prod(shape) or pixels.min() < 0 or pixels.max() > 255:
            raise BadRequestError(f"The data of '{PHOTO_INPUT}' are not {math.prod(shape)} numbers of 0 to 255.")
        return pixels.astype(np.uint8).reshape(shape)
    _check_encoded(datatype, shape)
    while isinstance(data, list) and len(data) == 1:
        data = data[0]
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise BadRequestError("In JSON an encoded photo is one base64 string.", "Or use binary data.") from error


def _check_pixels(shape: Sequence[int]) -> None:
    if len(shape) != 3 or shape[2] != 3 or not all(isinstance(n, int) and 0 < n < 2**20 for n in shape):
        raise BadRequestError(f"Pixels have the shape [height, width, 3], not {list(shape)[:8]}.")


def _check_encoded(datatype: str, shape: Sequence[int]) -> None:
    if datatype != "BYTES":
        raise BadRequestError(
            f"'{PHOTO_INPUT}' is BYTES (an encoded photo) or UINT8 (pixels), not {str(datatype)[:40]}."
        )
    if list(shape) not in ([1], [1, 1]):
        raise BadRequestError(
            f"One photo per request: the shape is [1], not {list(shape)[:8]}.",
            "Send several requests at once; the server makes batches of them.",
        )


def check_outputs(wanted: dict[str, bool]) -> dict[str, bool]:
    """``wanted``; raises BadRequestError where the model has no such output."""
    if unknown := [name for name in wanted if name not in PHOTO_OUTPUTS]:
        raise BadRequestError(f"The model has no output '{unknown[0][:80]}'.", f"It has {', '.join(PHOTO_OUTPUTS)}.")
    return wanted


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
        raise TooLargeError(f"The masks would be {size} bytes.", fix)


def array_bytes(array: NDArray[Any]) -> bytes:
    """A tensor's binary form: row-major, little-endian; BYTES elements with their lengths before them."""
    if array.dtype == object:
        return b"".join(len(each).to_bytes(4, "little") + each for each in array)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def format_answer(request: InferRequest, info: ModelInfo, found: Detections) -> tuple[bytes, int | None]:
    """(body, bytes of its JSON part); None where all of it is JSON."""
    outputs: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, as_binary in request.outputs.items():
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
    answer = {"id": request.id} if request.id else {}
    head = json.dumps(answer | {"model_name": info.name, "model_version": "1", "outputs": outputs}).encode()
    return head + b"".join(binary), len(head) if binary else None


def check_model(info: ModelInfo, name: str, version: str = "") -> None:
    """Raise NotFoundError unless the server has that model."""
    if name != info.name or version not in ("", "1"):
        raise NotFoundError(f"There is no model '{name[:80]}' {version[:20]}.", f"There is '{info.name}', version 1.")
