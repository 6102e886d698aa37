"""Settings from a Matterport ``Config`` class, or from the TOML file of ``blu train``.

A Python file is read as a syntax tree and never executed: it may import packages that are not here, look for
data, or belong to someone else.
"""

from __future__ import annotations

import ast
import dataclasses
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.errors import ModelFileError, UsageError
from blu_export.model.config_classes import ConfigClass, read_classes
from blu_export.model.expressions import Unreadable
from blu_export.spec import NONE_IS_ZERO, ModelSpec

MAX_BYTES = 2**22
NOT_SETTINGS = ("class_names", "assumed", "provenance", "version")
"""Fields of the spec that no ``Config`` has."""
SPEC_FIELDS = {f.name.upper(): f.name for f in dataclasses.fields(ModelSpec) if f.name not in NOT_SETTINGS}
ORIGINAL = {name: getattr(ModelSpec(("BG", "a")), f) for name, f in SPEC_FIELDS.items()} | {"NUM_CLASSES": 1}
"""The attributes of the original's ``Config`` that a subclass may compute with."""


@dataclass(frozen=True)
class ConfigFile:
    """Settings that a file gives.

    Attributes:
        source: the file, and the class in it.
        values: spec field -> value.
        num_classes: with the background; None where it is not said.
        class_names: lists of names in the file, each with where it stands; the likelier one first.
        ignored: settings that inference does not need.
        unread: spec field -> where it is set, and to what, where that cannot be known without running the file.
        notes: what else people should know.
        is_whole: what is not set has the original's value, since the class descends from its ``Config``.
    """

    source: str
    values: Mapping[str, Any]
    num_classes: int | None = None
    class_names: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ignored: tuple[str, ...] = ()
    unread: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_whole: bool = True

    def names_for(self, count: int) -> tuple[str, ...] | None:
        """The names that a model with that many classes, the background included, can have."""
        for _, names in self.class_names:
            if len(names) in (count, count - 1):
                return names
        return None

    def lines(self) -> list[str]:
        """What was read, for people."""
        lines = [f"{self.source}: {', '.join(f'{k} {_show(v)}' for k, v in self.values.items()) or 'nothing is set'}"]
        for where, names in self.class_names[:1]:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"{self.source}: class names {', '.join(names[:3])}{more} ({where})")
        if self.ignored:
            lines.append(f"{self.source}: not needed for inference: {', '.join(self.ignored)}")
        return lines + [f"{self.source}: {note}" for note in self.notes]


def read_config(name: str) -> ConfigFile:
    """Read ``FILE.py``, ``FILE.py:Class`` or ``FILE.toml``.

    Of several classes the last one with ``Inference`` in its name is taken, else the last.

    Raises:
        UsageError: there is no such file or class.
        ModelFileError: it is not Python or TOML.
    """
    path, chosen = Path(name), ""
    if not path.is_file() and ":" in name:
        path, chosen = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    if not path.is_file():
        raise UsageError(f"There is no settings file {path}.", "Give the Python file that has the Config class.")
    if path.suffix.lower() not in (".py", ".toml"):
        raise UsageError(f"{path} is not a settings file.", "Give a .py with a Config class, or a .toml of blu train.")
    if path.stat().st_size > MAX_BYTES:
        raise ModelFileError(f"{path} is too large for a settings file.")
    content = path.read_bytes()
    return _from_toml(path, content) if path.suffix.lower() == ".toml" else _from_python(path, content, chosen)


def _from_toml(path: Path, content: bytes) -> ConfigFile:
    try:
        table = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not TOML: {error}.", "Give the configuration of a training run.") from error
    model = table.get("model", {})
    fields = set(SPEC_FIELDS.values())
    if not isinstance(model, dict) or not set(model) <= fields:
        raise ModelFileError(f"The table [model] of {path} holds more than settings of a model.", "See docs/train.md.")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in model.items()}
    ignored = [f"[{name}]" if isinstance(part, dict) else name for name, part in table.items() if name != "model"]
    return ConfigFile(path.name, values, ignored=tuple(ignored))


def _from_python(path: Path, content: bytes, chosen: str) -> ConfigFile:
    try:
        tree = ast.parse(content, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelFileError(f"{path} is not Python 3: {error}.", "Give the file that has the Config class.") from error
    found = read_classes(tree, ORIGINAL)
    classes = {c.name: c for c in found.classes.values() if _is_config(c, found.classes)}
    if not classes or (chosen and chosen not in classes):
        what = f"no class {chosen}" if chosen else "no Config class"
        there = f"It has {', '.join(classes)}." if classes else "Give the file whose class extends mrcnn.config.Config."
        raise UsageError(f"{path} has {what}.", there)
    inference = [name for name in classes if "inference" in name.lower()]
    picked = chosen or (inference or list(classes))[-1]
    lineage = list(_lineage(classes[picked], found.classes))
    bases = list(dict.fromkeys(base for each in lineage for base in each.bases if base not in found.classes))
    attributes: dict[str, Any] = {}
    for each in reversed(lineage):
        attributes |= each.values
    values: dict[str, Any] = {}
    unread: dict[str, str] = {}
    ignored, notes, count = [], list(found.notes), None
    for name, value in attributes.items():
        if name == "NUM_CLASSES":
            count = value if isinstance(value, int) else None
        elif name not in SPEC_FIELDS:
            ignored.append(name)
        elif isinstance(value, Unreadable) or not _is_plain(_plain(value)):
            unread[SPEC_FIELDS[name]] = (
                f"line {value.line}: {name} = {value.text}" if isinstance(value, Unreadable) else name
            )
        else:
            plain = _plain(value)
            values[SPEC_FIELDS[name]] = 0 if plain is None and SPEC_FIELDS[name] in NONE_IS_ZERO else plain
    foreign = [base for base in bases if base not in _ORIGINALS]
    notes += [f"{base} is not in the file: what it sets is not known" for base in foreign]
    if len(classes) > 1 and not chosen:
        others = ", ".join(name for name in classes if name != picked)
        notes.append(f"the file has {others} too; name one with {path.name}:CLASS")
    names = tuple((where, names) for where, names in found.class_names() if names)
    return ConfigFile(
        f"{path.name}:{picked}",
        values,
        count,
        names,
        tuple(sorted(ignored)),
        unread,
        tuple(notes),
        bool(bases) and not foreign,
    )


def _is_config(cls: ConfigClass, classes: Mapping[str, ConfigClass]) -> bool:
    """Whether a class is one of settings: by what it descends from, or by what it sets."""
    lineage = list(_lineage(cls, classes))
    bases = [base for each in lineage for base in each.bases if base not in classes]
    return any(base.endswith("Config") for base in bases) or any(
        name in SPEC_FIELDS or name == "NUM_CLASSES" for each in lineage for name in each.values
    )


def _lineage(cls: ConfigClass, classes: Mapping[str, ConfigClass], depth: int = 50) -> Iterator[ConfigClass]:
    """A class and those of its bases that are in the file, the nearest first."""
    yield cls
    for base in cls.bases:
        if base in classes and base != cls.name and depth:
            yield from _lineage(classes[base], classes, depth - 1)


_ORIGINALS = ("Config", "CocoConfig")
"""Classes that have the original's values for all that inference needs."""


def _plain(value: Any) -> Any:
    """Arrays and lists as tuples."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _show(value: Any) -> str:
    return "×".join(map(_show, value)) if isinstance(value, tuple) else f"{value}"
