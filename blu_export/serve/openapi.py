"""What /openapi.json says of the bodies, the answers and the statuses; routes take it from here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from blu_export.contract import PHOTO_INPUT, PHOTO_OUTPUTS
from blu_export.serve.metrics import CONTENT_TYPE
from blu_export.serve.oip_request import HEADER
from blu_export.serve.render import JSON, NPZ, PNG

Answers = dict[int | str, dict[str, Any]]

TEXTS = {
    400: "Malformed request.",
    401: "The key is missing or wrong.",
    404: "There is no such model.",
    406: "None of the accepted types can be made.",
    408: "The body did not arrive in time.",
    413: "Too many bytes or pixels.",
    415: "Not an image of a known format, or a compressed request.",
    422: "The image is broken.",
    429: "Busy: try again after the seconds in Retry-After.",
    500: "The network failed on this photo.",
    503: "The server starts, stops, or has lost its device.",
    504: "No result within the deadline, the queue included.",
}
PHOTO_STATUSES = (400, 401, 408, 413, 415, 422, 429, 500, 503, 504)
BINARY = {"type": "string", "format": "binary"}
ID = {"type": "string"}


def _object(required: Iterable[str] | None = None, /, **properties: Any) -> dict[str, Any]:
    """An object that has these properties, all required unless said otherwise."""
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}


def _array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


INTEGER, NUMBER, STRING = {"type": "integer"}, {"type": "number"}, {"type": "string"}
PROBLEM = _object(
    error=_object(code=STRING, message=STRING, fix=STRING), request_id={"anyOf": [STRING, {"type": "null"}]}
)
OIP_PROBLEM = _object(error=STRING)
HEALTH = _object(ready={"type": "boolean"})
_RETRY = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}}


def problems(statuses: Iterable[int], schema: dict[str, Any] = PROBLEM) -> Answers:
    """Answers that tell of errors."""
    return {
        status: {"description": TEXTS[status], "content": {JSON: {"schema": schema}}}
        | ({"headers": _RETRY} if status == 429 else {})
        for status in statuses
    }


MODEL = _object(
    name=STRING,
    sha256=STRING,
    runtime=STRING,
    device=STRING,
    precision=STRING,
    classes=_array(STRING),
    canvas={"anyOf": [_array(INTEGER), {"type": "null"}]},
    min_score=NUMBER,
    limits=_object(bytes=INTEGER, pixels=INTEGER),
    accept=_array(STRING),
)
DETECTION = _object(
    ("class", "class_id", "score", "box"),
    **{"class": STRING},
    class_id=INTEGER,
    score=NUMBER,
    box=_array(INTEGER) | {"minItems": 4, "maxItems": 4, "description": "y1, x1, y2, x2 in pixels of the photo."},
    mask=_object(size=_array(INTEGER), counts=STRING),
    polygons=_array(_array(INTEGER)) | {"description": "Each x, y, x, y, … in pixels."},
)
DETECTIONS = _object(
    ("request_id", "model", "image", "classes", "detections", "seconds", "batch"),
    request_id=ID,
    model=_object(name=STRING, sha256=STRING),
    image=_object(height=INTEGER, width=INTEGER),
    classes=_array(STRING),
    detections=_array(DETECTION),
    seconds=_object(decode=NUMBER, queue=NUMBER, run=NUMBER),
    batch=INTEGER,
    tiles=_object(side=INTEGER, overlap=NUMBER, windows=INTEGER, dropped=INTEGER)
    | {"description": "Where asked for: windows that went through the network, instances too many to be merged."},
)
PREDICT_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            **{f"image/{kind}": {"schema": BINARY} for kind in ("jpeg", "png", "webp", "bmp", "tiff")},
            "multipart/form-data": {"schema": _object(image=BINARY)},
        },
    }
}
PREDICT_ANSWERS: Answers = {
    200: {
        "description": "What was found.",
        "content": {JSON: {"schema": DETECTIONS}, PNG: {"schema": BINARY}, NPZ: {"schema": BINARY}},
    },
    **problems((*PHOTO_STATUSES[:2], 406, *PHOTO_STATUSES[2:])),
}

_TENSOR = _object(
    ("name", "datatype", "shape"),
    name=STRING,
    datatype=STRING,
    shape=_array(INTEGER),
    parameters=_object((), binary_data_size=INTEGER),
    data={"description": "Absent where the tensor is binary data."},
)
_WANTED = _object(
    ("name",), name={"enum": list(PHOTO_OUTPUTS)}, parameters=_object((), binary_data={"type": "boolean"})
)
INFER_REQUEST = _object(
    ("inputs",),
    id=ID,
    inputs=_array(
        _object(
            name={"const": PHOTO_INPUT},
            datatype={"const": "BYTES"},
            shape={"const": [1]},
            data=_array({"type": "string", "format": "byte", "description": "The encoded photo as base64."})
            | {"minItems": 1, "maxItems": 1},
        )
    )
    | {"minItems": 1, "maxItems": 1},
    outputs=_array(_WANTED) | {"description": "Default: all."},
    parameters=_object((), binary_data_output={"type": "boolean"}),
)
INFER_BODY = {
    "parameters": [
        {
            "name": HEADER,
            "in": "header",
            "required": False,
            "schema": {"type": "integer", "minimum": 0},
            "description": "Bytes of the JSON part of application/octet-stream.",
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": INFER_REQUEST},
            "application/octet-stream": {
                "schema": BINARY
                | {"description": "The JSON part, then the tensors' bytes: the binary tensor extension."}
            },
        },
    },
}
INFER_RESPONSE = _object(
    ("model_name", "model_version", "outputs"), id=ID, model_name=STRING, model_version=STRING, outputs=_array(_TENSOR)
)
INFER_ANSWERS: Answers = {
    200: {
        "description": "The outputs.",
        "content": {JSON: {"schema": INFER_RESPONSE}, "application/octet-stream": {"schema": BINARY}},
        "headers": {HEADER: {"schema": INTEGER, "description": "Bytes of the JSON part, where there are others."}},
    },
    **problems((*PHOTO_STATUSES[:2], 404, *PHOTO_STATUSES[2:]), OIP_PROBLEM),
}


def one(schema: dict[str, Any], *statuses: int, problem: dict[str, Any] = OIP_PROBLEM) -> Answers:
    """The answers of a route that answers JSON of one schema."""
    return {200: {"description": "Yes.", "content": {JSON: {"schema": schema}}}, **problems(statuses, problem)}


def health(*statuses: int) -> Answers:
    """The answers of a question of health."""
    return {
        200: {"description": "Yes.", "content": {JSON: {"schema": HEALTH}}},
        503: {"description": "No.", "content": {JSON: {"schema": HEALTH}}},
        **problems(statuses, OIP_PROBLEM),
    }


SERVER = _object(name=STRING, version=STRING, extensions=_array(STRING))
METADATA = _object(
    name=STRING, versions=_array(STRING), platform=STRING, inputs=_array(_TENSOR), outputs=_array(_TENSOR)
)
CONFIG = _object(
    name=STRING,
    platform=STRING,
    backend=STRING,
    max_batch_size=INTEGER,
    input=_array(_object(name=STRING, data_type=STRING, dims=_array(INTEGER))),
    output=_array(_object(name=STRING, data_type=STRING, dims=_array(INTEGER))),
    parameters={"type": "object"},
)
METRICS: Answers = {
    200: {"description": "Prometheus text.", "content": {CONTENT_TYPE.partition(";")[0]: {"schema": STRING}}},
    **problems((401,)),
}
