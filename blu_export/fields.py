"""Values for the fields of a dataclass, checked against its annotations."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from typing import Any


@functools.cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """Field -> its type, of a dataclass."""
    return typing.get_type_hints(cls)


def coerce(value: Any, kind: Any) -> Any:
    """``value`` as a field of type ``kind``: a list becomes a tuple, a whole number a float.

    Args:
        value: as JSON, TOML or a caller gives it.
        kind: str, bool, int, float, a tuple, an optional one, or a mapping of those. A bool never passes for a number.

    Raises:
        ValueError: it does not fit; the text goes on after the field's name ("must be a list, not 3").
    """
    if kind is Any:
        return value
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return None if value is None else coerce(value, next(k for k in typing.get_args(kind) if k is not type(None)))
    if origin is tuple:
        return _coerce_tuple(value, kind)
    if issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a table, not {value!r}")
        key, element = typing.get_args(kind)
        return {coerce(name, key): coerce(each, element) for name, each in value.items()}
    if origin is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise ValueError(f"must be of type {origin.__name__}, not {value!r}")
    return value


def _coerce_tuple(value: Any, kind: Any) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be a list, not {value!r}")
    elements = typing.get_args(kind)
    if elements[1:] == (...,):
        elements = elements[:1] * len(value)
    if len(value) != len(elements):
        raise ValueError(f"must have {len(elements)} values, not {len(value)}")
    return tuple(coerce(each, element) for each, element in zip(value, elements, strict=True))
