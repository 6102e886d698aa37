"""Ids as tools write them: numbers, text, floats, of one kind here and another there."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Ids(Generic[T]):
    """Values by id. ``12``, ``12.0`` and ``"12"`` are the same id, unless the data set has two of them."""

    def __init__(self) -> None:
        self._exact: dict[Any, T] = {}
        self._loose: dict[str, T | None] = {}

    def __len__(self) -> int:
        return len(self._exact)

    def values(self) -> list[T]:
        """All values, in the order in which they came."""
        return list(self._exact.values())

    def add(self, key: Any, value: T) -> None:
        """Take in an id that is not there yet.

        Raises:
            ValueError: it is not an id.
        """
        self._exact[check_id(key)] = value
        loose = _loosely(key)
        self._loose[loose] = None if loose in self._loose else value

    def exact(self, key: Any) -> T | None:
        """The value of exactly this id.

        Raises:
            ValueError: it is not an id.
        """
        return self._exact.get(check_id(key))

    def find(self, key: Any) -> T | None:
        """The value of this id, written in any way; None where there is none, or two."""
        try:
            found = self._exact.get(key)
        except TypeError:  # a list or dict
            return None
        if found is not None and not isinstance(key, bool):
            return found
        return None if key is None or isinstance(key, bool) else self._loose.get(_loosely(key))


def check_id(key: Any) -> Any:
    """The id itself: a number or text.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(key, bool) or not isinstance(key, int | float | str) or key != key:
        raise ValueError(f"the id {key!r} is neither a number nor text")
    return int(key) if isinstance(key, float) and key.is_integer() else key


def _loosely(key: Any) -> str:
    if isinstance(key, float) and key.is_integer():
        return str(int(key))
    text = str(key).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if number.is_integer() and len(text) < 18 else text.lstrip("0") or "0"
