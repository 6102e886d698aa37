"""The reader that decides which files a runtime may see."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from blu_export.contract import Tensor
from blu_export.errors import ModelFileError
from blu_export.runtime.onnx_file import OnnxFile, parse_onnx, read_onnx, spec_of

FakeOnnx = Callable[..., Path]


def test_reads_what_the_onnx_package_reads(fake_onnx: FakeOnnx) -> None:
    path = fake_onnx()
    model, expected = read_onnx(path), onnx.load(path)
    assert model.metadata == {entry.key: entry.value for entry in expected.metadata_props}
    assert model.opsets == {"ai.onnx": 17}
    assert model.inputs == [
        Tensor("canvas", "uint8", ("batch", 64, 64, 3)),
        Tensor("window", "float32", ("batch", 4)),
    ]
    assert [tensor.name for tensor in model.outputs] == ["detections", "masks", "num_detections"]
    assert sum(model.op_counts.values()) == len(expected.graph.node)
    assert model.op_counts["Reshape"] == 3
    assert spec_of(model, "fake").class_names == ("BG", "coat", "shoe")


def _branch(tensor: onnx.TensorProto) -> onnx.GraphProto:
    output = helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])
    return helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "branch", [], [output])


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_external_tensors_are_refused_wherever_they_are(place: str) -> None:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="w", data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    nodes = {
        "initializer": [helper.make_node("Identity", ["w"], ["y"])],
        "constant": [helper.make_node("Constant", [], ["y"], value=tensor)],
        "subgraph": [helper.make_node("If", ["c"], ["y"], then_branch=_branch(tensor), else_branch=_branch(tensor))],
    }[place]
    graph = helper.make_graph(nodes, "g", [], [output], [tensor] if place == "initializer" else [])
    with pytest.raises(ModelFileError, match="in other files"):
        parse_onnx(helper.make_model(graph).SerializeToString())


def _varint(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*digits, value])


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        (14 << 3, 1, "in other files"),
        (14 << 3, 2**32 + 1, "in other files"),  # a parser keeps the lower 32 bits: 1
        (2**32 + (14 << 3), 1, "no field has the key"),  # likewise: that of field 14
    ],
)
def test_numbers_that_parsers_cut_to_32_bits_hide_nothing(key: int, value: int, why: str) -> None:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="w").SerializeToString()
    tensor += _varint(key) + _varint(value)
    with pytest.raises(ModelFileError, match=why):
        parse_onnx(_field(7, _field(5, tensor) + _field(1, _field(4, b"Identity"))))


def test_attributes_of_functions_are_looked_at_too() -> None:
    tensor = TensorProto(dims=[1], data_type=TensorProto.FLOAT, name="w", data_location=TensorProto.EXTERNAL)
    function = helper.make_function("d", "F", [], ["y"], [], [], [], [helper.make_attribute("a", tensor)])
    graph = helper.make_graph([helper.make_node("F", [], ["y"], domain="d")], "g", [], [])
    with pytest.raises(ModelFileError, match="in other files"):
        parse_onnx(helper.make_model(graph, functions=[function]).SerializeToString())


def test_foreign_model_names_what_is_missing(fake_onnx: FakeOnnx) -> None:
    with pytest.raises(ModelFileError, match="carries no blu_spec"):
        spec_of(read_onnx(fake_onnx(metadata={"blu_spec": None})), "foreign.onnx")
    with pytest.raises(ModelFileError, match="foreign.onnx has the outputs boxes"):
        spec_of(read_onnx(fake_onnx(rename={"detections": "boxes"})), "foreign.onnx")
    with pytest.raises(ModelFileError, match="valid model spec"):
        spec_of(read_onnx(fake_onnx(metadata={"blu_spec": '{"class_names": 3}'})), "foreign.onnx")


def test_canvas_must_be_the_specs(fake_onnx: FakeOnnx) -> None:
    other = spec_of(read_onnx(fake_onnx()), "a").replace(image_max_dim=128).to_json()
    with pytest.raises(ModelFileError, match=r"\(64, 64\) but its spec says \(128, 128\)"):
        spec_of(read_onnx(fake_onnx(metadata={"blu_spec": other})), "fake.onnx")


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_onnx(tmp_path / "none.onnx")
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ModelFileError, match="holds no graph"):
        read_onnx(tmp_path / "empty.onnx")


def _field(number: int, content: bytes) -> bytes:
    """One length-delimited protobuf field."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


@pytest.mark.parametrize(("depth", "good"), [(2, True), (200, False)])
def test_deep_nesting_is_refused(depth: int, good: bool) -> None:
    graph = b""
    for _ in range(depth):  # a graph, of a node, of an attribute, of a graph …
        graph = _field(1, _field(4, b"If") + _field(5, _field(6, graph)))
    if good:
        assert parse_onnx(_field(7, graph)).op_counts == {"If": depth}
    else:
        with pytest.raises(ModelFileError, match="nested deeper"):
            parse_onnx(_field(7, graph))


@given(st.binary(max_size=200))
def test_random_bytes_are_a_model_file_error_or_a_description(data: bytes) -> None:
    with suppress(ModelFileError):
        assert isinstance(parse_onnx(data), OnnxFile)


@given(st.data())
def test_a_damaged_file_is_a_model_file_error_or_a_description(fake_onnx: FakeOnnx, data: st.DataObject) -> None:
    whole = bytearray(_cached(fake_onnx))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        spec_of(parse_onnx(cut), "damaged.onnx")
    except ModelFileError as error:
        assert error.what


_bytes: list[bytes] = []


def _cached(fake_onnx: FakeOnnx) -> bytes:
    if not _bytes:
        _bytes.append(fake_onnx().read_bytes())
    return _bytes[0]
