"""ExportOptions: what an ONNX file is to be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from blu_export.errors import UsageError
from blu_export.files import require_writable

DEFAULT_OPSET = 18
CONVERTERS = {"direct": ("onnx", "h5py"), "tf2onnx": ("onnx", "h5py", "tensorflow", "keras", "tf2onnx")}
"""How the subnetworks become ONNX -> packages that it needs. A test holds both to the same outputs."""


@dataclass(frozen=True)
class ExportOptions:
    """What ``export_onnx`` is asked for."""

    class_names: Sequence[str] | None = None
    """By class id. This and the next three are for weights that do not say all, see ``model.given.Given``."""
    settings: Sequence[str] = ()
    ignore_layers: Sequence[str] = ()
    config: str | os.PathLike[str] | None = None
    converter: str = "direct"
    """``direct`` writes the subnetworks from the tensors; ``tf2onnx`` traces the Keras model."""
    target: str = "portable"
    """``portable`` (ONNX Runtime, OpenVINO) or ``tensorrt``."""
    opset: int = DEFAULT_OPSET
    """Version of the ONNX operator set, one of graph.OPSETS; int8 raises it where it must."""
    precision: str = "float32"
    """Of the subnetworks: ``float32``, ``fp16`` or ``int8``."""
    method: str = "minmax"
    """How int8 ranges are chosen, see ``precision.apply_precision``."""
    compress_to_fp16: bool = False
    """Store the kernels in half and compute in float32, see ``graph.compression``."""
    verify: bool = True
    """Compare the file with the Keras model, instance by instance."""

    def check(self) -> None:
        """Refuse at once what would fail after a minute of conversion.

        Raises:
            UsageError: a value is not one of those possible.
        """
        from blu_export.contract import TARGETS
        from blu_export.graph.builder import OPSETS
        from blu_export.quantize.precision import PRECISIONS

        for name, value, known in (
            ("target", self.target, TARGETS),
            ("opset", self.opset, OPSETS),
            ("precision", self.precision, PRECISIONS),
            ("converter", self.converter, tuple(CONVERTERS)),
        ):
            if value not in known:
                raise UsageError(f"There is no {name} {value}.", f"It must be one of {', '.join(map(str, known))}.")
        if self.compress_to_fp16 and (self.target, self.precision) != ("portable", "float32"):
            raise UsageError("Only a portable float32 file is compressed.", "Leave out --compress-to-fp16.")


def check_output(output: Path) -> None:
    """Refuse what is not a name for an ONNX file, or cannot be written.

    Raises:
        UsageError: it is not.
    """
    if output.suffix != ".onnx":
        raise UsageError(f"{output} is not a name for an ONNX file.", "Use a name that ends in .onnx.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder.", "Name a file.")
    require_writable(output)
