"""What ``blu benchmark`` measured of a model on this machine, kept in the cache for ``runtime.choice``."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from blu_export.cache import cache_folder
from blu_export.files import atomic_write
from blu_export.runtime.cpu import processor

RUNTIMES = ("onnxruntime", "openvino")
"""Runtimes that run .onnx files."""
REDUCED = ("int8", "fp16")
"""Precisions that have a file of their own beside the float32 one."""


def precision_path(path: Path, precision: str) -> Path:
    """Where another precision of ``path`` lies: ``coco.onnx`` and int8 give ``coco.int8.onnx``."""
    stem = path.name.removesuffix(".onnx")
    for known in REDUCED:
        stem = stem.removesuffix(f".{known}")
    return path.with_name(f"{stem}.onnx" if precision == "float32" else f"{stem}.{precision}.onnx")


def fit_path(path: Path) -> Path:
    """Where a float32 file's model on canvases that fit lies: ``coco.fit.onnx`` beside ``coco.onnx``."""
    return path.with_name(f"{path.name.removesuffix('.onnx').removesuffix('.fit')}.fit.onnx")


def family(path: Path) -> list[Path]:
    """A float32 file, and what there is beside it: its reduced precisions, and all of them on canvases that fit."""
    exact = dict.fromkeys((path, fit_path(path)))
    files = [file for each in exact for file in (each, *(precision_path(each, p) for p in REDUCED))]
    return [file for file in files if file.is_file()]


@dataclass(frozen=True)
class Known:
    """What was measured here of one model, by "file runtime"."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Of the network, one photo at a time."""
    lanes: Mapping[str, int] = field(default_factory=dict)
    """The better number of lanes for many photos."""
    day: str = ""


def remember(
    path: Path, seconds: Mapping[tuple[Path, str], float], lanes: Mapping[tuple[Path, str], int] | None = None
) -> None:
    """Keep what was measured here for ``choose``, by (file, runtime); see Known."""
    if (record := _record(path)) is None:
        return
    values = {
        "state": _state(path),
        "day": date.today().isoformat(),
        "seconds": {label(*key): value for key, value in seconds.items()},
        "lanes": {label(*key): value for key, value in (lanes or {}).items()},
    }
    with atomic_write(record) as temporary:
        temporary.write_text(json.dumps(values))


def recall(path: Path) -> Known:
    """What was remembered for a model; nothing where a file, a runtime or the processor has changed since."""
    record = _record(path)
    try:
        values = json.loads(record.read_text()) if record else {}
        if values and values["state"] == _state(path):
            seconds = {str(k): float(v) for k, v in values["seconds"].items()}
            return Known(seconds, {str(k): int(v) for k, v in values["lanes"].items()}, str(values["day"]))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass  # absent, or not ours: the rule decides
    return Known()


def label(path: Path, runtime: str) -> str:
    """The key of a file in a runtime."""
    return f"{path.name} {runtime}"


def _record(path: Path) -> Path | None:
    folder = cache_folder("choices")
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:40]
    return folder and folder / f"{name}.json"


def _state(path: Path) -> dict[str, Any]:
    """What a measurement depends on. Sizes and times of the files rather than hashes: it is looked up at each start."""
    stats = {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in family(path)}
    return {"files": stats, "versions": {name: _version(name) for name in RUNTIMES}, "processor": repr(processor())}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None
