"""An exported file with other settings of the box arithmetic or another canvas: its subnetworks, composed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blu_export.contract import Metadata
from blu_export.runtime.onnx_file import OnnxFile, parse_onnx, read_onnx, spec_of


def recompose(path: Path, **changes: Any) -> OnnxFile:
    """A portable file of ``blu export onnx`` with fields of its spec changed that its weights do not depend on.

    Raises:
        ModelFileError: not such a file.
        UsageError: a value is not possible.
    """
    import onnx

    from blu_export.graph.compose import compose
    from blu_export.graph.split import split

    source = read_onnx(path)
    spec = spec_of(source, str(path))
    changed = spec.replace(**changes)
    model = compose(split(onnx.load_from_string(source.data), spec), changed)
    metadata = {Metadata.SPEC: changed.to_json(), Metadata.PRECISION: source.precision}
    onnx.helper.set_model_props(model, {str(key): value for key, value in metadata.items()})
    return parse_onnx(model.SerializeToString(), str(path))
