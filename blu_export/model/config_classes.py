"""Classes, their attributes and lists of class names of a Python file, read from its syntax tree."""

from __future__ import annotations

import ast
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blu_export.errors import ModelFileError
from blu_export.model.expressions import Unreadable, bind, evaluate

NAME_LISTS = ("class_names", "CLASS_NAMES")
MAX_ROUNDS = 10_000
"""Of a loop that adds classes."""
MAX_STATEMENTS = 100_000
"""Statements that are evaluated, each round of a loop counted."""


@dataclass
class ConfigClass:
    """A class of the file; a value that cannot be read is an Unreadable."""

    name: str
    bases: tuple[str, ...]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Instance:
    """What ``Name()`` makes."""

    of: str


class _Members(Mapping[str, Any]):
    """The attributes of a class for expressions as ``Config.NUM_CLASSES + 2``."""

    def __init__(self, reader: FileReader, name: str) -> None:
        self.reader, self.name = reader, name

    def __getitem__(self, attribute: str) -> Any:
        seen, queue = set(), [self.name]
        while queue:
            name = queue.pop(0)
            name = self.reader.aliases.get(name, name)
            known = self.reader.classes.get(name)
            values = self.reader.original if known is None else known.values
            if attribute in values and not isinstance(values[attribute], Unreadable):
                return values[attribute]
            seen.add(name)
            queue += [base for base in (known.bases if known else ()) if base not in seen]
        raise KeyError(attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_classes(tree: ast.Module, original: Mapping[str, Any]) -> FileReader:
    """Everything that a file defines; ``original`` has the attributes of classes that are not in it."""
    reader = FileReader(original)
    reader.block(tree.body, {})
    return reader


class FileReader:
    """Goes through statements in order, as Python would, without doing anything but assignments.

    Attributes:
        classes: by name, the last of a name.
        added: (source, id, name) of each ``add_class`` call.
        lists: line and names of each list assigned to one of NAME_LISTS.
        notes: what could not be read.
    """

    def __init__(self, original: Mapping[str, Any]) -> None:
        self.original = original
        self.classes: dict[str, ConfigClass] = {}
        self.added: list[tuple[Any, int, str]] = []
        self.lists: list[tuple[int, tuple[str, ...]]] = []
        self.notes: list[str] = []
        self.aliases: dict[str, str] = {}
        self.statements = 0

    def class_names(self) -> list[tuple[str, tuple[str, ...]]]:
        """Lists of class names and where they stand: of ``add_class`` calls first, in the order of ids."""
        calls = list(dict.fromkeys(self.added))
        if len({number for _, number, _ in calls}) == len(calls):
            calls.sort(key=lambda call: call[1])
        found = [("add_class", tuple(name for *_, name in calls))] if calls else []
        return found + [(f"line {line}", names) for line, names in reversed(self.lists)]

    def block(self, body: Sequence[ast.stmt], names: dict[str, Any], into: ConfigClass | None = None) -> None:
        """Statements one after another.

        Args:
            names: values so far; changed.
            into: the class whose body, or whose ``__init__``, this is.
        """
        self.statements += len(body)
        if self.statements > MAX_STATEMENTS:
            raise ModelFileError("The settings file is too long to read.", "Give a file with only the Config class.")
        for statement in body:
            self._statement(statement, names, into)

    def _statement(self, node: ast.stmt, names: dict[str, Any], into: ConfigClass | None) -> None:
        match node:
            case ast.Assign():
                for target in node.targets:
                    self._assign(target, self._value(node.value, names), names, into, node)
            case ast.AnnAssign() if node.value is not None:
                self._assign(node.target, self._value(node.value, names), names, into, node)
            case ast.AugAssign() if isinstance(node.target, ast.Name | ast.Attribute):
                read = ast.copy_location(ast.parse(ast.unparse(node.target), mode="eval").body, node)
                both = ast.copy_location(ast.BinOp(read, node.op, node.value), node)
                self._assign(node.target, self._value(both, names), names, into, node)
            case ast.ImportFrom() | ast.Import():
                self.aliases |= {a.asname: a.name.rpartition(".")[2] for a in node.names if a.asname}
            case ast.ClassDef():
                self._class(node, names)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                local = names | {each.arg: Unreadable(each) for each in parameters}
                own = into if node.name == "__init__" else None
                if own is not None and parameters:
                    local[parameters[0].arg] = _Instance(own.name)
                self.block(node.body, local)
            case ast.For():
                self._loop(node, names, into)
            case ast.If():
                self._condition(node, names, into)
            case ast.With() | ast.AsyncWith():
                self.block(node.body, names, into)
            case ast.Try():
                self.block(node.body, names, into)
                for part in (*(handler.body for handler in node.handlers), node.orelse, node.finalbody):
                    self._maybe(part, names, into)
            case ast.While():
                self._maybe(node.body, names, into)
            case ast.Expr(value=ast.Call() as call):
                self._call(call, names)

    def _value(self, node: ast.expr, names: Mapping[str, Any]) -> Any:
        """The value of an expression, an _Instance of a class, or the Unreadable that it is."""
        if isinstance(node, ast.Call) and (made := self._class_of(node.func, names)):
            return _Instance(made)
        instances = {name: _Members(self, value.of) for name, value in names.items() if isinstance(value, _Instance)}
        classes = {name: _Members(self, name) for name in ("Config", *self.aliases, *self.classes)}
        try:
            return evaluate(node, ChainMap[str, Any](instances, dict(names), classes))
        except Unreadable as error:
            return error

    def _assign(
        self, target: ast.expr, value: Any, names: dict[str, Any], into: ConfigClass | None, node: ast.stmt
    ) -> None:
        if isinstance(target, ast.Attribute):
            self._set_member(target, value, names, node)
            if target.attr in NAME_LISTS:
                self._name_list(value, node.lineno)
            return
        try:
            bound = bind(target, value)
        except Unreadable as error:
            bound = dict.fromkeys((n.id for n in ast.walk(target) if isinstance(n, ast.Name)), error)
        names |= bound
        for name, each in bound.items():
            if name in NAME_LISTS:
                self._name_list(each, node.lineno)
            if into is not None and name.isupper():
                into.values[name] = each

    def _set_member(self, target: ast.Attribute, value: Any, names: Mapping[str, Any], node: ast.stmt) -> None:
        """``config.IMAGE_MAX_DIM = 512``, ``self.NUM_CLASSES = 3``, ``InferenceConfig.NAME = "x"``."""
        if not target.attr.isupper():
            return
        owner = names.get(target.value.id) if isinstance(target.value, ast.Name) else None
        name = owner.of if isinstance(owner, _Instance) else getattr(target.value, "id", "")
        if name in self.classes:
            self.classes[name].values[target.attr] = value
        elif target.attr in self.original:
            self.notes.append(f"line {node.lineno}: {ast.unparse(target)} is set on something that is not in the file")

    def _class(self, node: ast.ClassDef, names: dict[str, Any]) -> None:
        bases = [self._class_of(base, names, calls=False) or ast.unparse(base) for base in node.bases]
        made = ConfigClass(node.name, tuple(bases))
        if node.name in bases:  # class Config(Config): the older one goes on under another name
            older = f"{node.name} before line {node.lineno}"
            if node.name in self.classes:
                known = self.classes[node.name]
                self.classes[older] = ConfigClass(older, known.bases, known.values)
                made.bases = tuple(older if base == node.name else base for base in bases)
            else:
                made.bases = tuple("Config" if base == node.name else base for base in bases)
        self.classes.pop(node.name, None)
        self.classes[node.name] = made
        # Methods last: __init__ runs when all attributes of the class are set.
        self.block(sorted(node.body, key=lambda each: isinstance(each, ast.FunctionDef)), dict(names), made)

    def _class_of(self, node: ast.expr, names: Mapping[str, Any], calls: bool = True) -> str:
        """The class that an expression names: ``InferenceConfig``, ``config.Config``, ``config.__class__``."""
        if isinstance(node, ast.Attribute) and node.attr == "__class__" and isinstance(node.value, ast.Name):
            owner = names.get(node.value.id)
            return owner.of if isinstance(owner, _Instance) else ""
        last = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
        last = self.aliases.get(last, last) if last not in self.classes else last
        return last if not calls or last in self.classes or last.endswith("Config") else ""

    def _loop(self, node: ast.For, names: dict[str, Any], into: ConfigClass | None) -> None:
        items = self._value(node.iter, names)
        if isinstance(items, Unreadable | _Instance) or not hasattr(items, "__len__") or len(items) > MAX_ROUNDS:
            self._maybe(node.body, names | bind(node.target, Unreadable(node.iter)), into)
            return
        for item in items:
            try:
                names |= bind(node.target, item)
            except (Unreadable, TypeError):
                names |= bind(node.target, Unreadable(node.target))
            self.block(node.body, names, into)

    def _condition(self, node: ast.If, names: dict[str, Any], into: ConfigClass | None) -> None:
        """A condition that can be computed decides; the main block is run; of another one nothing is known."""
        is_main = "__name__" in ast.unparse(node.test)
        test = True if is_main else self._value(node.test, names)
        if isinstance(test, Unreadable):
            for part in (node.body, node.orelse):
                self._maybe(part, names, into)
        else:
            self.block(node.body if test else node.orelse, names, into)

    def _maybe(self, body: Sequence[ast.stmt], names: dict[str, Any], into: ConfigClass | None) -> None:
        """Statements of which it is not known whether they run: classes count, values are unreadable."""
        local = dict(names)
        inner = ConfigClass("", ()) if into is not None else None
        before = {name: dict(each.values) for name, each in self.classes.items()}
        self.block(body, local, inner)
        for name, value in local.items():
            if name not in names or names[name] is not value:
                names[name] = self._doubtful(body, value)
        if into is not None and inner is not None:
            into.values |= {name: self._doubtful(body, value) for name, value in inner.values.items()}
        for name, values in before.items():
            now = self.classes[name].values if name in self.classes else {}
            for attribute, value in now.items():
                if attribute not in values or values[attribute] is not value:
                    now[attribute] = self._doubtful(body, value)

    @staticmethod
    def _doubtful(body: Sequence[ast.stmt], value: Any) -> Any:
        return value if isinstance(value, Unreadable | _Instance) else Unreadable(body[0], "under a condition")

    def _call(self, node: ast.Call, names: Mapping[str, Any]) -> None:
        if not (isinstance(node.func, ast.Attribute) and node.func.attr == "add_class"):
            return
        given = dict(zip(("source", "class_id", "class_name"), node.args, strict=False))
        given |= {each.arg: each.value for each in node.keywords if each.arg}
        source, number, name = (
            self._value(given[key], names) if key in given else None for key in ("source", "class_id", "class_name")
        )
        if isinstance(number, int) and isinstance(name, str):
            self.added.append((source if isinstance(source, str) else None, number, name))
        else:
            self.notes.append(f"class names: {Unreadable(node)} cannot be read without running it")

    def _name_list(self, value: Any, line: int) -> None:
        if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
            self.lists.append((line, tuple(value)))
        elif isinstance(value, Unreadable):
            self.notes.append(f"class names: {value} cannot be read without running it")
