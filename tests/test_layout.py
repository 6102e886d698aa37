"""How the package is laid out: imports run one way (ORDER), files and lists of parameters stay short."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "blu_export"
ORDER = [
    *("__main__", "cli", "serve", "batch", "client", "cluster"),
    *("export", "train", "benchmark", "evaluate", "quantize", "parity", "detector"),
    *("runtime", "data", "model", "graph", "tensorrt", "workers"),
    *("stream", "tiles", "tracks", "image", "detections"),
    *("results", "video", "draw", "instances", "sources", "embedded"),
    *("contract", "anchors", "spec", "fields", "boxes", "rle", "files", "extras", "cache", "errors", "telemetry"),
]
"""From top to bottom; CONTRIBUTING says what each is. The package itself (``__version__``) is open to all."""
MOST_LINES = 350
"""Of a file."""
MOST_PARAMETERS = 8
"""Of a function, self left aside. Commands are free: their parameters are the options."""
FREE = {("detector.py", "load")}
"""The way into the library: its keywords are what users type."""
STANDS_ALONE = PACKAGE / "export" / "triton_backend"
"""Runs inside Triton, beside a copy of the modules that it imports."""


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if STANDS_ALONE not in path.parents]


def imported(path: Path) -> Iterator[str]:
    """Folders and modules of the package that a file imports, inside functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "blu_export":
            names = [f"blu_export.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            names = [node.module or ""]
        else:
            continue
        yield from (name.split(".")[1] for name in names if name.startswith("blu_export.") and "__" not in name)


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down(path: Path) -> None:
    place = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if place == "__init__":
        return
    up = {name for name in imported(path) if ORDER.index(name) < ORDER.index(place)}
    assert not up, f"{path.relative_to(PACKAGE)} imports {up}, which stands above {place}"


def _edges() -> dict[str, set[str]]:
    """Module -> modules that it imports, by their dotted names."""
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__") for path in modules()}
    found: dict[str, set[str]] = {}
    for path in modules():
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blu_export."):
                module = (node.module or "").removeprefix("blu_export.")
                for alias in node.names:
                    target = f"{module}.{alias.name}" if f"{module}.{alias.name}" in names else module
                    found.setdefault(name, set()).add(target)
    return found


def test_no_module_is_in_a_circle() -> None:
    edges, done, path = _edges(), set(), []

    def visit(name: str) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for target in sorted(edges.get(name, ())):
            if not name.startswith(f"{target}."):  # a module may import names from the folder that holds it
                visit(target)
        path.pop()
        done.add(name)

    for name in sorted(edges):
        visit(name)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_parameter_lists_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MOST_LINES, "split it where it has two subjects"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if (str(path.relative_to(PACKAGE)), node.name) in FREE or _is_command(node):
            continue
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
        count = len([each for each in every if each is not None and each.arg not in ("self", "cls")])
        assert count <= MOST_PARAMETERS, f"{node.name} takes {count}: group them in a dataclass"


@pytest.mark.parametrize("init", sorted(PACKAGE.glob("*/**/__init__.py")), ids=lambda path: path.parent.name)
def test_the_drawing_of_a_folder_names_its_files(init: Path) -> None:
    text = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
    there = {path.stem for path in init.parent.glob("*.py")} - {"__init__"}
    folders = {path.parent.name for path in init.parent.glob("*/*.py")}
    drawn = {name for names in re.findall(r"(\w+(?:, \w+)*) ──", text) for name in names.split(", ")}
    assert drawn <= there | folders, "is drawn but not there"
    assert there <= set(re.findall(r"\w+", text)), "is there but not drawn"


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(each).startswith("app.command(") for each in node.decorator_list)
