"""The two builders' Python modules: what they are called, and how their libraries are found."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from blu_export.errors import MissingDependencyError
from blu_export.extras import install_command

BUILDERS = ("tensorrt", "tensorrt-rtx")
OLDEST_TENSORRT = (10, 12)
"""The first whose strongly typed networks take the exported file."""

_RTX_BINDINGS = ("tensorrt_rtx", "tensorrt_rtx_bindings")
"""NVIDIA's full package, and the bindings alone."""
_RTX_LIBRARIES = "onnxruntime_ep_nv_tensorrt_rtx"
"""ONNX Runtime's plug-in for TensorRT-RTX: a package that brings the libraries along."""


@cache
def tensorrt() -> ModuleType:
    """TensorRT's module.

    Raises:
        MissingDependencyError: it is not installed, its libraries do not load, or it is too old.
    """
    install = f"Install it with: {install_command('gpu')}"
    if not _has("tensorrt"):
        raise MissingDependencyError("TensorRT is not installed.", install)
    try:
        module = import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"TensorRT is installed but its libraries do not load: {error}.", install
        ) from error
    if tuple(int(n) for n in module.__version__.split(".")[:2]) < OLDEST_TENSORRT:
        raise MissingDependencyError(
            f"TensorRT {module.__version__} is too old.",
            f"Install {OLDEST_TENSORRT[0]}.{OLDEST_TENSORRT[1]} or later: pip install -U tensorrt",
        )
    return module


@cache
def tensorrt_rtx() -> ModuleType:
    """TensorRT-RTX's module, its libraries loaded from where pip put them.

    The bindings ask the system for their libraries by name. A library that is in the process already is
    found under the name inside it (its soname), so it is enough to load them first, by path.

    Raises:
        MissingDependencyError: bindings or libraries are not installed, or do not load.
    """
    install = f"Install it with: {install_command('rtx')} (x86-64 Linux)"
    name = next((n for n in _RTX_BINDINGS if _has(n)), None)
    if name is None:
        raise MissingDependencyError("TensorRT-RTX is not installed.", install)
    try:
        for library in _rtx_libraries():
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        return import_module(name)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(f"TensorRT-RTX does not load: {error}.", install) from error


def load_builder(name: str) -> ModuleType:
    """The module of a builder, one of BUILDERS."""
    return tensorrt_rtx() if name == "tensorrt-rtx" else tensorrt()


def is_installed(name: str) -> bool:
    """Whether the builder's bindings are there (they may still fail to load)."""
    return any(_has(module) for module in (_RTX_BINDINGS if name == "tensorrt-rtx" else ("tensorrt",)))


def _has(module: str) -> bool:
    """Whether a package is there; a folder without code, as packages of type stubs leave it, is none."""
    spec = find_spec(module)
    return spec is not None and spec.origin is not None


def _rtx_libraries() -> list[Path]:
    """The libraries inside ONNX Runtime's package, in the order in which they need each other."""
    package = find_spec(_RTX_LIBRARIES)
    if package is None or not package.submodule_search_locations:
        return []  # then the system must know them
    folder = Path(next(iter(package.submodule_search_locations)))
    patterns = ("libcudart.so.*", "libtensorrt_rtx.so.*", "libtensorrt_onnxparser_rtx.so.*")
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]
