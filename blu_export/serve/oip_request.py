"""Reading an infer request of the Open Inference Protocol, of which nothing is believed.

Every element is looked at as what it claims to be, and counted against the declared shape, before NumPy sees it.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.contract import MAX_MASK_BYTES, PHOTO_INPUT, PHOTO_OUTPUTS
from blu_export.serve.errors import BadRequestError, TooLargeError
from blu_export.spec import MAX_CHANNELS

HEADER = "Inference-Header-Content-Length"
MAX_HEADER_DIGITS = 20
"""Digits of that header: no body has a longer size, and ``int`` raises an error of its own beyond 4,300."""
MAX_ID = 1024
"""Characters of a request's id."""
MAX_JSON_ELEMENTS = 1_000_000
"""Of an output as a JSON list; larger ones only come as binary data."""
REFUSED_PARAMETERS = {
    "shared_memory_region": "Shared memory is not supported; tensors travel in the request and its answer.",
    "classification": "The classification extension is not supported; the outputs have class ids and scores.",
    "class_count": "The classification extension is not supported; the outputs have class ids and scores.",
}
"""Parameters of tensors that change what a request means, with what is wrong with them here. Others do nothing."""


@dataclass(frozen=True)
class Wanted:
    """What an infer request wants in its answer."""

    id: str
    outputs: dict[str, bool]
    """Output -> whether as binary data."""
    named: bool
    """Whether the request named its outputs; if not it gets all."""

    def check_size(self, height: int, width: int, instances: int) -> None:
        """Raise where a request that names no outputs may not get all of them, however little is found.

        Args:
            height, width: of the photo.
            instances: that may be found, at most.

        Raises:
            BadRequestError: its masks may be too many elements for JSON.
            TooLargeError: its masks may be more than MAX_MASK_BYTES.
        """
        size = height * width * instances
        if self.named or "masks" not in self.outputs:
            return
        fix = "Name the outputs that you want: masks_rle instead of masks, for one."
        if not self.outputs["masks"] and size > MAX_JSON_ELEMENTS:
            raise BadRequestError(f"The masks of this photo may have {size} elements, too many for JSON.", fix)
        if size > MAX_MASK_BYTES:
            raise TooLargeError(f"The masks of this photo may be {size} bytes.", fix)


def parse_request(body: bytes, header_length: str | None, max_json: int) -> tuple[bytes | NDArray[np.uint8], Wanted]:
    """The photo of an infer request, and what is wanted of it.

    Args:
        body: JSON, followed by the binary data of the input if it has some.
        header_length: bytes of the JSON part, the header HEADER; None: all.
        max_json: bytes that it may have.

    Raises:
        BadRequestError: it is not a valid request for our model.
        TooLargeError: its JSON part is larger than ``max_json``.
    """
    end = json_length(header_length, len(body), max_json)
    try:
        request = _object(json.loads(body[:end]), "The request")
    except (ValueError, RecursionError) as error:
        raise BadRequestError(f"The request is not JSON: {error}.") from error
    tensors = [_object(each, "An input") for each in _list(request.get("inputs"), "'inputs'")]
    if [each.get("name") for each in tensors] != [PHOTO_INPUT]:
        raise BadRequestError(f"The model has one input, '{PHOTO_INPUT}'.")
    wanted = _wanted(request)
    return _photo(tensors[0], body[end:]), wanted


def json_length(header: str | None, size: int, limit: int) -> int:
    """Bytes of the JSON part of a body of ``size`` bytes, by the header HEADER; None: all of it.

    Raises:
        BadRequestError: the body is shorter.
        TooLargeError: they are more than ``limit``.
    """
    if header is not None and (not header.isdecimal() or len(header) > MAX_HEADER_DIGITS or int(header) > size):
        raise BadRequestError(f"{HEADER} is {header[:40]}, but the body has {size} bytes.")
    length = size if header is None else int(header)
    if length > limit:
        raise TooLargeError(
            f"The JSON of the request has {length} bytes, more than {limit}.",
            "Send the photo with the binary tensor extension: after the JSON, as it is.",
        )
    return length


def wanted_outputs(request_id: str, names: Sequence[str], binary: Sequence[bool]) -> Wanted:
    """What is wanted of the outputs so named; all of them, where there are no names, as the first of ``binary`` says.

    Raises:
        BadRequestError: the model has no such output, or one is named twice.
    """
    if len(request_id) > MAX_ID:
        raise BadRequestError(f"The id of the request has {len(request_id)} characters, more than {MAX_ID}.")
    if unknown := [name for name in names if name not in PHOTO_OUTPUTS]:
        raise BadRequestError(f"The model has no output '{unknown[0][:80]}'.", f"It has {', '.join(PHOTO_OUTPUTS)}.")
    if len(set(names)) < len(names):
        raise BadRequestError("An output is named twice.")
    if not names:
        return Wanted(request_id, dict.fromkeys(PHOTO_OUTPUTS, binary[0]), named=False)
    return Wanted(request_id, dict(zip(names, binary, strict=True)), named=True)


def check_parameters(names: Iterable[str]) -> None:
    """Raise BadRequestError for parameters of a tensor that ask for what this server does not do."""
    for name in names:
        if name in REFUSED_PARAMETERS:
            raise BadRequestError(REFUSED_PARAMETERS[name], f"Leave the parameter '{name}' out.")


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


def _wanted(request: dict[str, Any]) -> Wanted:
    """What a request says of its answer."""
    request_id = request.get("id", "")
    if not isinstance(request_id, str):
        raise BadRequestError("The id of the request is not a string.", "Leave it out, or write a string.")
    default = _flag(_parameters(request, "the request"), "binary_data_output", False)
    outputs = [_object(each, "An output") for each in _list(request.get("outputs", []), "'outputs'")]
    names, binary = [], []
    for each in outputs:
        names.append(_text(each.get("name"), "The name of an output"))
        parameters = _parameters(each, "an output")
        check_parameters(parameters)
        binary.append(_flag(parameters, "binary_data", default))
    return wanted_outputs(request_id, names, binary or [default])


def _photo(tensor: dict[str, Any], binary: bytes) -> bytes | NDArray[np.uint8]:
    """The photo of a request's input, in the JSON or after it."""
    datatype = _text(tensor.get("datatype"), "The datatype of the input")
    shape = _list(tensor.get("shape"), "The shape of the input")
    parameters = _parameters(tensor, "the input")
    check_parameters(parameters)
    if "binary_data_size" in parameters:
        size = parameters["binary_data_size"]
        if type(size) is not int or size != len(binary):
            raise BadRequestError(f"binary_data_size is {str(size)[:40]}, but {len(binary)} bytes follow the JSON.")
        if "data" in tensor:
            raise BadRequestError("The input has data in the JSON and after it.", "Send one of them.")
        return photo_of_bytes(datatype, shape, binary)
    if binary:
        raise BadRequestError(
            f"{len(binary)} bytes follow the JSON, which says nothing of them.", "Say binary_data_size."
        )
    if datatype == "UINT8":
        _check_pixels(shape)
        return np.array(_numbers(tensor.get("data"), shape), np.uint8).reshape(shape)
    _check_encoded(datatype, shape)
    return _from_base64(tensor.get("data"))


def _numbers(data: Any, shape: Sequence[int]) -> list[int]:
    """Pixels in a list, or in lists of lists as the shape says."""
    flat: list[Any] = _list(data, "The data of the input")
    if flat and isinstance(flat[0], list):
        for size in shape[1:]:
            if not all(isinstance(each, list) and len(each) == size for each in flat):
                raise BadRequestError(f"The data of '{PHOTO_INPUT}' do not have the shape {list(shape)}.")
            flat = [each for row in flat for each in row]
    count = math.prod(shape)
    if len(flat) != count or not all(type(each) is int and 0 <= each <= 255 for each in flat):
        raise BadRequestError(f"The data of '{PHOTO_INPUT}' are not {count} numbers of 0 to 255.")
    return flat


def _from_base64(data: Any) -> bytes:
    """An encoded photo: one string, in a list or in two."""
    for _ in "12":
        if isinstance(data, list) and len(data) == 1:
            data = data[0]
    try:
        return base64.b64decode(_text(data, "The photo"), validate=True)
    except (binascii.Error, ValueError, BadRequestError) as error:
        raise BadRequestError("In JSON an encoded photo is one base64 string.", "Or use binary data.") from error


def _check_pixels(shape: Sequence[Any]) -> None:
    sides = all(type(side) is int and 0 < side < 2**20 for side in shape)
    if len(shape) != 3 or not sides or shape[2] > MAX_CHANNELS:
        raise BadRequestError(f"Pixels have the shape [height, width, channels], not {str(list(shape)[:8])[:80]}.")


def _check_encoded(datatype: str, shape: Sequence[Any]) -> None:
    if datatype != "BYTES":
        raise BadRequestError(f"'{PHOTO_INPUT}' is BYTES (an encoded photo) or UINT8 (pixels), not {datatype[:40]}.")
    if any(type(side) is not int for side in shape) or list(shape) not in ([1], [1, 1]):
        raise BadRequestError(
            f"One photo per request: the shape is [1], not {str(list(shape)[:8])[:80]}.",
            "Send several requests at once; the server makes batches of them.",
        )


def _parameters(owner: dict[str, Any], what: str) -> dict[str, Any]:
    return _object(owner.get("parameters", {}), f"'parameters' of {what}")


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadRequestError(f"The parameter {name} is neither true nor false.")
    return value


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadRequestError(f"{what} is not a JSON object.")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise BadRequestError(f"{what} is not a JSON list.")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise BadRequestError(f"{what} is not a string.")
    return value
