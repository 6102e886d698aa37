"""Files that come with the package: the default model and the demo photo."""

from __future__ import annotations

from pathlib import Path

from blu_export.errors import ModelFileError

_PACKAGE = Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "models", _PACKAGE.parent / "models")
"""In an installed wheel; in a checkout."""

DEFAULT_MODEL = "garments.onnx"
DEMO_PHOTO = "demo/snowboarder.jpg"


def embedded(name: str = DEFAULT_MODEL) -> Path:
    """The path of an embedded file, ``garments.onnx`` for example.

    Raises:
        ModelFileError: this installation has no such file.
    """
    for folder in _FOLDERS:
        if (path := folder / name).is_file():
            return path
    raise ModelFileError(
        f"The embedded file {name} is not part of this installation.", "Install blu-export again, or name a file."
    )
