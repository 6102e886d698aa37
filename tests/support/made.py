"""What several tests, processes and runs read, made once: files in the user's cache, by the source that makes them.

A change of the package, of this folder or of a package that converts gives everything another place, so nothing is
ever older than the code under test.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import os
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
ABOVE = ("cli", "serve", "batch", "client.py", "cluster.py")
"""What stands above the export (see test_layout) cannot change what is made here."""
PACKAGES = {"keras", "numpy", "onnx", "onnxruntime", "tensorflow", "tensorflow-cpu", "tf2onnx"}
KEPT_SECONDS = 3600
"""What no run has used for that long is removed when something new is made: full-size models are large."""


def cache_folder() -> Path:
    """The folder of all test files of this user."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blu-export-tests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@cache
def source_key() -> str:
    """A hash of all that decides what is made: package, this folder, versions of other packages."""
    found = hashlib.sha256()
    package = ROOT / "blu_export"
    paths = [path for path in package.rglob("*.py") if path.relative_to(package).parts[0] not in ABOVE]
    for path in sorted([*paths, *Path(__file__).parent.glob("*.py")]):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    versions = {each.name: each.version for each in importlib.metadata.distributions() if each.name in PACKAGES}
    found.update(repr(sorted(versions.items())).encode())
    return found.hexdigest()[:16]


def made(name: str, make: Callable[[Path], object], *inputs: Path) -> Path:
    """The file ``name``, which ``make(path)`` writes unless it is there.

    Processes that want the same file at the same time wait for the first of them. A failure leaves nothing.

    Args:
        name: with its suffix, which ``make`` may go by.
        make: writes the file at the path that it is given.
        inputs: files that it is made from; what changes in them gives it another place.
    """
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in inputs]
    key = hashlib.sha256(repr(states).encode()).hexdigest()[:8]
    folder = cache_folder() / f"source-{source_key()}"
    folder.mkdir(exist_ok=True)
    os.utime(folder)
    path = folder / f"{key}-{name}"
    if not path.exists():
        _remove_unused(folder)
    return once(path, make)


def once(path: Path, make: Callable[[Path], object]) -> Path:
    """The file at ``path``, which ``make(another path)`` writes unless it is there; one process at a time."""
    with open(path.with_name(f".{path.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f".unfinished-{path.name}")
            unfinished.unlink(missing_ok=True)  # of a process that was killed
            try:
                make(unfinished)
                unfinished.replace(path)
            finally:
                unfinished.unlink(missing_ok=True)
    return path


def _remove_unused(folder: Path) -> None:
    for other in folder.parent.glob("source-*"):
        if other != folder and other.stat().st_mtime < time.time() - KEPT_SECONDS:
            shutil.rmtree(other, ignore_errors=True)


def hash_of(*arrays: NDArray[np.generic]) -> str:
    """Short hash of the contents of arrays, for the name of what is computed from them."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]
