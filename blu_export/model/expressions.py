"""Python expressions of a settings file, computed from the syntax tree: nothing of the file is executed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_ITEMS = 100_000
"""Of a list, a string or a range that an expression makes."""
MAX_POWER = 64
MAX_NUMBER = 2**64

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{
        each.__name__: each
        for each in (abs, bool, dict, float, int, len, list, max, min, round, sorted, str, sum, tuple)
    },
    "enumerate": lambda *a: list(enumerate(*a)),
    "range": lambda *a: list(range(*a)),
    "zip": lambda *a: list(zip(*a, strict=False)),
}
_MATH = {name: getattr(math, name) for name in ("ceil", "floor", "log2", "sqrt")} | {"pi": math.pi}
_METHODS = {
    dict: ("items", "keys", "values", "get"),
    str: ("split", "strip", "lower", "upper", "replace", "splitlines"),
    list: ("index",),
}
_ARRAYS = ("array", "asarray")
_ARRAY_MODULES = ("np", "numpy")


class Unreadable(Exception):
    """A value cannot be known without running the file.

    Attributes:
        line: of the file.
        text: what stands there.
        why: more than that it is not a plain value.
    """

    def __init__(self, node: ast.AST, why: str = "") -> None:
        self.line = getattr(node, "lineno", 0)
        try:
            text = ast.unparse(node)
        except RecursionError:
            text = "an expression of great depth"
        self.why = why
        self.text = (text if len(text) <= 60 else f"{text[:57]}…") + (f" ({why})" if why else "")
        super().__init__(f"line {self.line}: {self.text}")


def evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """The value of an expression.

    Numbers, strings, tuples, lists, dicts, None, arithmetic, indexing, ``np.array([...])``, a few functions of
    Python, comprehensions over them, and ``names``.

    Raises:
        Unreadable: it is anything else, or would be very large.
    """
    try:
        return _limited(node, _evaluate(node, names))
    except Unreadable as error:
        raise Unreadable(node, error.why) from error
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError, MemoryError, RecursionError) as error:
        raise Unreadable(node, str(error)[:60]) from error


def _evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    def inner(child: ast.expr) -> Any:
        return _limited(child, _evaluate(child, names))

    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            if node.id in names and not isinstance(names[node.id], Unreadable):
                return names[node.id]
        case ast.Tuple() | ast.List() | ast.Set():
            items = [inner(item) for item in node.elts]
            return tuple(items) if isinstance(node, ast.Tuple) else items
        case ast.Dict() if None not in node.keys:
            return {inner(k): inner(v) for k, v in zip(node.keys, node.values, strict=True) if k is not None}
        case ast.UnaryOp() if type(node.op) in _UNARY:
            return _UNARY[type(node.op)](inner(node.operand))
        case ast.BinOp() if type(node.op) in _BINARY:
            return _binary(node, inner(node.left), inner(node.right))
        case ast.IfExp():
            return inner(node.body if inner(node.test) else node.orelse)
        case ast.Slice():
            return slice(*(None if each is None else inner(each) for each in (node.lower, node.upper, node.step)))
        case ast.Subscript():
            return inner(node.value)[inner(node.slice)]
        case ast.Attribute():
            return _attribute(node, names)
        case ast.JoinedStr():
            return "".join(str(inner(v.value if isinstance(v, ast.FormattedValue) else v)) for v in node.values)
        case ast.Call():
            return _call(node, inner)
        case ast.ListComp() | ast.GeneratorExp() if len(node.generators) == 1 and not node.generators[0].ifs:
            loop = node.generators[0]
            return [evaluate(node.elt, {**names, **bind(loop.target, item)}) for item in inner(loop.iter)]
    raise Unreadable(node)


def bind(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that an assignment of ``value`` gives a value: ``i, name`` and the like."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple | ast.List):
        values = [value] * len(target.elts) if isinstance(value, Unreadable) else list(value)
        if len(values) != len(target.elts):
            raise Unreadable(target)
        return {name: v for part, item in zip(target.elts, values, strict=True) for name, v in bind(part, item).items()}
    return {}


def _binary(node: ast.BinOp, left: Any, right: Any) -> Any:
    if isinstance(node.op, ast.Pow) and not (np.abs(right) <= MAX_POWER).all():
        raise Unreadable(node)
    if isinstance(node.op, ast.Mult):
        for items, count in ((left, right), (right, left)):
            if isinstance(items, list | tuple | str) and len(items) * count > MAX_ITEMS:
                raise Unreadable(node)
    if isinstance(node.op, ast.Mod) and isinstance(left, str):  # "%1000000d"
        raise Unreadable(node)
    return _BINARY[type(node.op)](left, right)


def _attribute(node: ast.Attribute, names: Mapping[str, Any]) -> Any:
    """``math.pi``, or a member of something that the file defines: a class of settings."""
    if isinstance(node.value, ast.Name):
        if node.value.id == "math" and node.attr in _MATH:
            return _MATH[node.attr]
        members = names.get(node.value.id)
        if isinstance(members, Mapping) and not isinstance(members, dict):
            return members[node.attr]
    raise Unreadable(node)


def _call(node: ast.Call, inner: Callable[[ast.expr], Any]) -> Any:
    if any(isinstance(a, ast.Starred) for a in node.args):
        raise Unreadable(node)
    match node.func:
        case ast.Name(id=name) if name in _FUNCTIONS:
            arguments = [inner(a) for a in node.args]
            if name == "range" and all(isinstance(a, int) for a in arguments) and len(range(*arguments)) > MAX_ITEMS:
                raise Unreadable(node)
            return _FUNCTIONS[name](*arguments, **{k.arg: inner(k.value) for k in node.keywords if k.arg})
        case ast.Attribute(value=ast.Name(id=module), attr=name) if module in _ARRAY_MODULES and name in _ARRAYS:
            array = np.asarray(inner(node.args[0]))
            if array.dtype.kind in "biuf":
                return array
        case ast.Attribute(value=ast.Name(id="math"), attr=name) if callable(_MATH.get(name)):
            return _MATH[name](*[inner(a) for a in node.args])
        case ast.Attribute(value=value, attr=name):
            owner = inner(value)
            kind: Any = type(owner)
            if name in _METHODS.get(kind, ()) and not node.keywords:
                found = getattr(owner, name)(*[inner(a) for a in node.args])
                return list(found) if name in ("items", "keys", "values") else found
    raise Unreadable(node)


def _limited(node: ast.AST, value: Any) -> Any:
    """The value, unless it is so large that going on with it would take memory or time."""
    too_long = isinstance(value, list | tuple | str | dict) and len(value) > MAX_ITEMS
    too_large = isinstance(value, int) and abs(value) > MAX_NUMBER
    if too_long or too_large or (isinstance(value, np.ndarray) and value.size > MAX_ITEMS):
        raise Unreadable(node, "too large")
    return value
