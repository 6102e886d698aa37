"""The parts of an ONNX file that must be known before a runtime may see it.

Read straight from the protobuf wire format (https://protobuf.dev/programming-guides/encoding), so
that neither the ``onnx`` package is needed nor a native parser is handed a file that was not checked.
Tensors are skipped, not copied: a file of 200 MB takes milliseconds.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blu_export.contract import Metadata, Tensor, graph_inputs, graph_outputs
from blu_export.errors import ModelFileError
from blu_export.spec import ModelSpec

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit for one message."""
MAX_DEPTH = 32
"""Nested subgraphs; the exporter writes two levels."""

_ELEMENT_TYPES = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""
_IN_THIS_FILE = 0
"""TensorProto.DataLocation. Parsers cut an enum to 32 bits: not 1 alone may mean another file."""
_LARGEST_KEY = 2**32 - 1
"""Parsers cut a longer one to 32 bits, and would see a field that was not seen here."""


@dataclass
class OnnxFile:
    """What an ONNX file says about itself."""

    data: bytes
    """The whole file."""
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    """Version by domain; the ONNX domain is ``ai.onnx``."""
    metadata: dict[str, str] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    op_counts: Counter[str] = field(default_factory=Counter)
    """Nodes by operator, those of subgraphs included."""
    external_tensors: int = 0

    @property
    def precision(self) -> str:
        """Precision of the subnetworks, as the exporter noted it."""
        return self.metadata.get(Metadata.PRECISION, "float32")

    def json_metadata(self, key: str) -> Any:
        """A metadata value that is JSON (``blu_parity``, ``blu_versions``); None where absent or broken."""
        try:
            return json.loads(self.metadata[key])
        except (KeyError, ValueError, RecursionError):
            return None


def named(model: str | os.PathLike[str] | OnnxFile, source: str = "model") -> tuple[OnnxFile, str]:
    """A file and its name for errors: read from a path, or what was already read, which ``source`` names."""
    return (model, source) if isinstance(model, OnnxFile) else (read_onnx(model), os.fspath(model))


def read_onnx(path: str | os.PathLike[str]) -> OnnxFile:
    """Read a file's description; see OnnxFile.

    Raises:
        ModelFileError: the file is missing, too large, corrupt, or keeps tensors in other files.
    """
    source = os.fspath(path)
    try:
        size = os.path.getsize(source)
        if size > MAX_FILE_BYTES:
            raise ModelFileError(f"{source} is larger than an ONNX file can be ({size} bytes).")
        data = Path(source).read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{source} cannot be read: {error.strerror or error}.", "Check the path of the model."
        ) from error
    return parse_onnx(data, source)


def parse_onnx(data: bytes, source: str = "model") -> OnnxFile:
    """The same for a file in memory; ``source`` names it in errors."""
    model = OnnxFile(data)
    try:
        _read_model(memoryview(data), model)
    except (ValueError, IndexError) as error:  # truncated or not protobuf; UnicodeDecodeError is a ValueError
        raise ModelFileError(
            f"{source} is not an ONNX file, or is cut short ({error}).", "Export or copy the model again."
        ) from error
    if not model.inputs and not model.op_counts:
        raise ModelFileError(f"{source} is not an ONNX file: it holds no graph.", "Export the model again.")
    if model.external_tensors:
        raise ModelFileError(
            f"{source} keeps {model.external_tensors} tensors in other files, which is refused for safety.",
            "Export the model again with blu export onnx: it writes one file.",
        )
    return model


def spec_of(model: OnnxFile, source: str) -> ModelSpec:
    """The ModelSpec inside a file that ``blu export onnx`` wrote.

    Raises:
        ModelFileError: another program's model, or one whose inputs, outputs and spec disagree.
    """
    if Metadata.SPEC not in model.metadata:
        raise ModelFileError(
            f"{source} was not exported by blu: it carries no blu_spec.",
            "Export the weights with: blu export onnx --weights FILE.h5",
        )
    spec = ModelSpec.from_json(model.metadata[Metadata.SPEC], source)
    for kind, given, tensors in (
        ("input", model.inputs, graph_inputs(spec)),
        ("output", model.outputs, graph_outputs(spec)),
    ):
        wanted = {tensor.name: (tensor.dtype, len(tensor.shape)) for tensor in tensors}
        found = {tensor.name: (tensor.dtype, len(tensor.shape)) for tensor in given}
        if found != wanted:
            raise ModelFileError(
                f"{source} has the {kind}s {_signature(found)}; a Mask R-CNN has {_signature(wanted)}.",
                "Export the model again with blu export onnx.",
            )
    sides = next(tensor.shape for tensor in model.inputs if tensor.name == "canvas")[1:3]
    fixed = tuple(side for side in sides if isinstance(side, int))
    if spec.canvas is not None and fixed and fixed != spec.canvas:
        raise ModelFileError(
            f"{source} takes a canvas of {fixed} but its spec says {spec.canvas}.", "Export the model again."
        )
    return spec


def _signature(tensors: dict[str, tuple[str, int]]) -> str:
    return ", ".join(f"{name} ({dtype}, rank {rank})" for name, (dtype, rank) in tensors.items()) or "none"


# Field numbers below are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).


def _read_model(message: memoryview, model: OnnxFile) -> None:
    for number, value in fields_of(message):
        match number, value:
            case 2, memoryview():
                model.producer = text_of(value)
            case 7, memoryview():
                _read_graph(value, model, depth=0)
            case 8, memoryview():
                opset = dict(fields_of(value))
                model.opsets[text_of(opset.get(1, b"")) or "ai.onnx"] = _integer(opset.get(2, 0))
            case 14, memoryview():
                entry = dict(fields_of(value))
                model.metadata[text_of(entry.get(1, b""))] = text_of(entry.get(2, b""))
            case 20, memoryview():
                raise ValueError("it holds training steps")
            case 25, memoryview():
                for part, inner in fields_of(value):
                    if part == 7 and isinstance(inner, memoryview):
                        _read_node(inner, model, depth=1)
                    elif part == 11 and isinstance(inner, memoryview):
                        _read_attribute(inner, model, depth=1)


def _read_graph(message: memoryview, model: OnnxFile, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ValueError(f"subgraphs nested deeper than {MAX_DEPTH}")
    for number, value in fields_of(message):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            _read_node(value, model, depth)
        elif number == 5:
            _read_tensor(value, model)
        elif number == 15:
            _read_sparse_tensor(value, model)
        elif number in (11, 12) and depth == 0:
            (model.inputs if number == 11 else model.outputs).append(_tensor_info(value))


def _read_node(message: memoryview, model: OnnxFile, depth: int) -> None:
    for number, value in fields_of(message):
        if number == 4:
            model.op_counts[text_of(value)] += 1
        elif number == 5 and isinstance(value, memoryview):
            _read_attribute(value, model, depth)


def _read_attribute(message: memoryview, model: OnnxFile, depth: int) -> None:
    for number, value in fields_of(message):
        if not isinstance(value, memoryview):
            continue
        if number in (5, 10):
            _read_tensor(value, model)
        elif number in (6, 11):
            _read_graph(value, model, depth + 1)
        elif number in (22, 23):
            _read_sparse_tensor(value, model)


def _read_tensor(message: memoryview, model: OnnxFile) -> None:
    if any(number == 13 or (number == 14 and value != _IN_THIS_FILE) for number, value in fields_of(message)):
        model.external_tensors += 1


def _read_sparse_tensor(message: memoryview, model: OnnxFile) -> None:
    for number, value in fields_of(message):
        if number in (1, 2) and isinstance(value, memoryview):
            _read_tensor(value, model)


def _tensor_info(message: memoryview) -> Tensor:
    info = dict(fields_of(message))
    tensor_type = dict(fields_of(_message(dict(fields_of(_message(info.get(2)))).get(1))))
    shape: list[int | str] = []
    for _, dimension in fields_of(_message(tensor_type.get(2))):
        size = dict(fields_of(_message(dimension)))
        shape.append(_integer(size[1]) if 1 in size else text_of(size.get(2, b"")) or "?")
    element = _integer(tensor_type.get(1, 0))
    return Tensor(text_of(info.get(1, b"")), _ELEMENT_TYPES.get(element, f"type {element}"), tuple(shape))


def fields_of(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one protobuf message; a length-delimited value is a view of its bytes."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        if not 8 <= key <= _LARGEST_KEY:
            raise ValueError(f"no field has the key {key}")
        wire = key & 7
        if wire == VARINT:
            number, position = _varint(message, position)
            yield key >> 3, number
            continue
        if wire == BYTES:
            length, position = _varint(message, position)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"unknown wire type {wire}")
        if length > end - position:
            raise ValueError("a field passes the end of the file")
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is longer than ten bytes")


def encode_varint(value: int) -> bytes:
    """An unsigned integer as protobuf writes it: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])


def _message(value: int | memoryview | None) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message belongs")
    return memoryview(b"") if value is None else value


def text_of(value: int | bytes | memoryview) -> str:
    """The text that a protobuf field holds."""
    if isinstance(value, int):
        raise ValueError("a number where text belongs")
    return str(value, "utf-8")


def _integer(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value
