"""Writing TOML: Python reads it, and has no writer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blu_export.files import atomic_write


def write_toml(path: Path, tables: Mapping[str, Any]) -> None:
    """Write nested tables of numbers, texts and lists as TOML."""
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(_toml(tables, "")) + "\n", "utf-8")


def _toml(table: Mapping[str, Any], name: str) -> list[str]:
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if not isinstance(value, Mapping)]
    if name and (lines or not table):
        lines = ["", f"[{name}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _toml(value, f"{name}.{key}".lstrip("."))
    return lines


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # JSON's escapes are TOML's too; only DEL needs one more.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(v) for v in value)}]"
    return repr(value)
