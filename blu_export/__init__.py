"""Train a Mask R-CNN in Keras; get the same detections from ONNX Runtime, OpenVINO and TensorRT.

    import blu_export

    detector = blu_export.load("model.onnx")
    found = detector("street.jpg")
    picture = blu_export.draw.overlay(blu_export.image.decode("street.jpg"), found)

The public names are imported on first use, so that ``import blu_export`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blu_export import telemetry

__version__ = "0.1.0"

telemetry.switch_off()  # before anything imports what would send it

if TYPE_CHECKING:
    from blu_export import draw, image
    from blu_export.detections import Detections
    from blu_export.detector import Detector, load
    from blu_export.errors import (
        BluError,
        CheckFailedError,
        DatasetError,
        ImageError,
        MissingDependencyError,
        ModelFileError,
        UsageError,
    )
    from blu_export.spec import ModelSpec

_HOMES = {
    "load": "detector",
    "Detector": "detector",
    "Detections": "detections",
    "ModelSpec": "spec",
    "BluError": "errors",
    "CheckFailedError": "errors",
    "DatasetError": "errors",
    "ImageError": "errors",
    "MissingDependencyError": "errors",
    "ModelFileError": "errors",
    "UsageError": "errors",
}

_MODULES = ("draw", "image")
"""Public as a whole."""

__all__ = [
    "load",
    "Detector",
    "Detections",
    "ModelSpec",
    "BluError",
    "CheckFailedError",
    "DatasetError",
    "ImageError",
    "MissingDependencyError",
    "ModelFileError",
    "UsageError",
    "draw",
    "image",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
