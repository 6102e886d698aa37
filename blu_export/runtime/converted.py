"""Keras weights as an ONNX file in the user's cache: written once for each content, settings and version."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blu_export import __version__
from blu_export.cache import cache_folder, keep_newest
from blu_export.contract import Metadata
from blu_export.extras import import_extra
from blu_export.files import atomic_write, sha256_of
from blu_export.model.given import Given
from blu_export.model.weights import Weights, check_weights, read_weights
from blu_export.spec import ModelSpec

log = logging.getLogger(__name__)

OPSET = 18
BYTES_ALLOWED = 2 * 2**30
"""Of all converted files together."""
NOT_COMPARED = "not compared with Keras: converted for this run"


@contextmanager
def converted(path: Path, given: Given) -> Iterator[Path]:
    """The weights as an ONNX file, to be opened inside the block.

    Raises:
        ModelFileError, UsageError: see ``Weights.make_spec`` and ``check_weights``.
        MissingDependencyError: a package of the extra ``export`` is not installed.
    """
    import_extra("onnx")
    import_extra("h5py")
    cache = cache_folder("converted")
    if cache is None:
        with tempfile.TemporaryDirectory() as folder:
            yield _convert(path, given, Path(folder) / f"{path.stem}.onnx")
        return
    made_of = f"{sha256_of(path)} {given!r} {__version__} {OPSET}"
    entry = cache / hashlib.sha256(made_of.encode()).hexdigest() / f"{path.stem}.onnx"
    if entry.is_file():
        os.utime(entry.parent)
    else:
        _convert(path, given, entry)
        keep_newest(cache, BYTES_ALLOWED)
    yield entry


def _convert(path: Path, given: Given, file: Path) -> Path:
    weights = read_weights(path)
    spec = weights.make_spec(given)
    report = check_weights(weights, spec, given.ignore_layers)
    log.info(
        "converting %s: %s, %d classes, %s", weights.note or path, spec.backbone, spec.num_classes, report.summary()
    )
    return _write(weights, spec, file)


def _write(weights: Weights, spec: ModelSpec, file: Path) -> Path:
    from onnx import helper

    from blu_export.graph.compose import compose
    from blu_export.model.direct import subnetworks

    graph = compose(subnetworks(weights.layers, spec, OPSET), spec)
    helper.set_model_props(
        graph,
        {
            Metadata.SPEC: spec.to_json(),
            Metadata.TARGET: "portable",
            Metadata.PRECISION: "float32",
            Metadata.PARITY: json.dumps({"not_compared": NOT_COMPARED}),
        },
    )
    with atomic_write(file) as temporary:
        temporary.write_bytes(graph.SerializeToString())
    return file
