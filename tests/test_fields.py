"""Values are taken as the annotation says, or refused with the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from blu_export.fields import coerce


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (3, float, 3.0),
        ([1, 2], tuple[float, ...], (1.0, 2.0)),
        ([1, "a"], tuple[int, str], (1, "a")),
        (None, tuple[int, int] | None, None),
        ([4, 5], tuple[int, int] | None, (4, 5)),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        ({"a": [1]}, dict[str, Any], {"a": [1]}),
        (True, bool, True),
    ],
)
def test_taken(value: object, kind: Any, expected: object) -> None:
    found = coerce(value, kind)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("value", "kind", "rule"),
    [
        (True, int, "must be of type int, not True"),
        (1, bool, "must be of type bool"),
        ("1", float, "must be of type float"),
        (2**60, float, "must be of type float"),
        (3, tuple[int, ...], "must be a list, not 3"),
        ([1, 2, 3], tuple[int, int], "must have 2 values, not 3"),
        ([1, True], tuple[int, int], "must be of type int, not True"),
        ("a", Mapping[str, str], "must be a table"),
        ({"a": 1}, Mapping[str, str], "must be of type str, not 1"),
    ],
)
def test_refused(value: object, kind: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        coerce(value, kind)
