"""ONNX Runtime's optimized graphs on disk: the second process that loads a model starts in a fraction of the time.

Most of a session's start goes into fusing nodes and laying the weights out for this processor. Both are
stored; the weights lie in a file of their own, which ONNX Runtime maps into memory instead of reading it. Where the
canvas follows the photo, the stored graph is also the faster one: see shape_names.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from blu_export.cache import cache_folder, keep_newest
from blu_export.runtime.cpu import processor
from blu_export.runtime.shape_names import names_for_sums

log = logging.getLogger(__name__)

FORMAT = 2
"""Counts up when what is stored changes."""
BYTES_ALLOWED = 4 * 2**30
"""Of all stored graphs together."""
_PROVIDERS = ["CPUExecutionProvider"]
_GRAPH, _WEIGHTS = "graph.onnx", "weights.bin"
_SMALLEST_WEIGHT = 1024
"""Bytes; smaller tensors stay in the graph."""


def open_session(ort: Any, data: bytes, batch: str | None, make_options: Callable[[], Any]) -> Any:
    """An ``InferenceSession`` of a model on the processor, from the cache where it has been there before.

    Args:
        data: the ONNX file.
        batch: where the size of its canvas follows the photo, the name of the canvas's first dimension.
        make_options: makes fresh ``SessionOptions``; what they set besides optimization is kept.

    Raises:
        Exception: what ONNX Runtime raises for a model that it refuses.
    """
    folder = cache_folder("onnxruntime")
    if folder is None:
        return ort.InferenceSession(data, make_options(), providers=_PROVIDERS)
    entry = folder / _key(ort, data)
    return _stored(ort, entry, make_options) or _store(ort, data, batch, entry, make_options)


def _key(ort: Any, data: bytes) -> str:
    """The layout of weights depends on the processor; the fusions on ONNX Runtime's version."""
    place = hashlib.sha256(repr((FORMAT, ort.__version__, processor())).encode())
    return f"{hashlib.sha256(data).hexdigest()[:40]}-{place.hexdigest()[:16]}"


def _stored(ort: Any, entry: Path, make_options: Callable[[], Any]) -> Any:
    if not (entry / _GRAPH).is_file():
        return None
    options = make_options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(os.fspath(entry / _GRAPH), options, providers=_PROVIDERS)
    except Exception as error:  # damaged, or removed meanwhile: made again below
        log.warning("the stored graph %s is unusable and is made again: %s", entry, error)
        shutil.rmtree(entry, ignore_errors=True)
        return None
    with suppress(OSError):  # in a cache that cannot be written there is no order to keep either
        os.utime(entry)
    return session


def _store(ort: Any, data: bytes, batch: str | None, entry: Path, make_options: Callable[[], Any]) -> Any:
    """Optimize the model and store the outcome: whole or not at all, also when other processes do the same."""
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=entry.parent, ignore_cleanup_errors=True) as work:
            options = make_options()
            options.optimized_model_filepath = os.path.join(work, _GRAPH)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", _WEIGHTS)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", str(_SMALLEST_WEIGHT)
            )
            session = ort.InferenceSession(data, options, providers=_PROVIDERS)
            names = names_for_sums(Path(work, _GRAPH).read_bytes(), batch) if batch else b""
            with open(Path(work, _GRAPH), "ab") as graph:
                graph.write(names)
            made = Path(work, "made")
            made.mkdir()
            for name in (_GRAPH, _WEIGHTS):
                if Path(work, name).exists():  # a model of small tensors only has no file of weights
                    Path(work, name).replace(made / name)
            if not entry.exists():
                made.rename(entry)
        keep_newest(entry.parent, BYTES_ALLOWED)
        return (names and _stored(ort, entry, make_options)) or session
    except Exception as error:  # a full disk, a race lost, or a bad model: the last one shows below
        log.debug("the optimized graph was not stored: %s", error)
        return ort.InferenceSession(data, make_options(), providers=_PROVIDERS)
