"""Names for sizes that follow the photo, in a graph that ONNX Runtime has optimized.

A residual block ends in a convolution that adds the block's input to its own result. ONNX Runtime computes that in the
input's memory, which saves a copy, where it knows that both have one shape. On a canvas of fixed size it infers that;
where the canvas follows the photo it infers nothing through a convolution with strides, and copies: 2 to 4 % of
ResNet-101's time. The node itself demands equal shapes, so a common name for them says nothing new.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from blu_export.runtime.onnx_file import BYTES, VARINT, encode_varint, fields_of, text_of

_FLOAT = 1
"""TensorProto.DataType."""
_CONV = ("com.microsoft.nchwc", "Conv")
_ADDED = 3
"""Place of the tensor that is added, among the inputs of a convolution."""


def names_for_sums(model: bytes, batch: str) -> bytes:
    """What to append to a serialized ModelProto, so that the shapes of every sum have names.

    Parsers merge a second ``graph`` field of a model into the first.

    Args:
        model: the optimized graph, whose sizes depend on the photo.
        batch: name of the first dimension of its inputs.
    """
    shapes = _Groups()
    for inputs, outputs in _convolutions(memoryview(model)):
        if len(inputs) > _ADDED and inputs[_ADDED]:
            shapes.join(inputs[_ADDED], outputs[0])
    infos = [
        _field(13, _value_info(name, (batch, *(f"shape {group} {axis}" for axis in "chw"))))
        for name, group in shapes.numbered()
    ]
    return _field(7, b"".join(infos)) if infos else b""


class _Groups:
    """Names that belong together."""

    def __init__(self) -> None:
        self._group: dict[str, list[str]] = {}

    def join(self, first: str, second: str) -> None:
        group, other = (self._group.setdefault(name, [name]) for name in (first, second))
        if group is not other:
            group += other
            self._group |= dict.fromkeys(other, group)

    def numbered(self) -> Iterator[tuple[str, int]]:
        numbers: dict[int, int] = {}
        for name, group in self._group.items():
            yield name, numbers.setdefault(id(group), len(numbers))


def _convolutions(model: memoryview) -> Iterator[tuple[list[str], list[str]]]:
    """Inputs and outputs of the convolutions in the layout of this processor."""
    for part, graph in fields_of(model):
        if part == 7 and isinstance(graph, memoryview):
            for number, node in fields_of(graph):
                if number == 1 and isinstance(node, memoryview):
                    names: dict[int, list[str]] = {1: [], 2: [], 4: [], 7: []}
                    for field, value in fields_of(node):
                        if field in names:
                            names[field].append(text_of(value))
                    if (*names[7], *names[4]) == _CONV:
                        yield names[1], names[2]


def _value_info(name: str, shape: Sequence[str]) -> bytes:
    dimensions = b"".join(_field(1, _field(2, size.encode())) for size in shape)
    tensor_type = _number(1, _FLOAT) + _field(2, dimensions)
    return _field(1, name.encode()) + _field(2, _field(1, tensor_type))


def _field(number: int, content: bytes) -> bytes:
    return encode_varint(number << 3 | BYTES) + encode_varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return encode_varint(number << 3 | VARINT) + encode_varint(value)
