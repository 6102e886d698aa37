"""JSON in pieces and in any encoding."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.data.json_text import START, WHOLE, decode_text, iterate

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=6), VALUES, max_size=5), st.sampled_from([None, 0, 2]))
def test_pieces_are_the_whole(content: dict[str, Any], indent: int | None) -> None:
    found: dict[str, Any] = {}
    for key, number, value in iterate(json.dumps(content, indent=indent)):
        if number == START:
            found[key] = []
        elif number == WHOLE:
            found[key] = value
        else:
            assert number == len(found[key])
            found[key].append(value)
    assert found == content


@pytest.mark.parametrize(
    "text", ["[1]", '{"a":[1,}', '{"a":1} x', '{"a"', '{"a":[1 2]}', "", "{", '{"a":1,}', '{"a":[1']
)
def test_broken_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="char"):
        list(iterate(text))


@pytest.mark.parametrize(
    ("name", "written", "guessed"),
    [
        ("杯子", "gbk", "gb18030"),
        ("コップ", "cp932", "cp932"),
        ("чашка", "cp1251", "cp1251"),
        ("tasse à thé", "cp1252", "cp1252"),
        ("杯子 盒子", "big5", "big5"),
        ("tasse à thé", "utf-8-sig", ""),
        ("杯子", "utf-16", ""),
        ("杯子", "utf-32-be", ""),
    ],
)
def test_encodings(name: str, written: str, guessed: str) -> None:
    text = json.dumps({"name": name}, ensure_ascii=False)
    assert decode_text(text.encode(written)) == (text, guessed)
