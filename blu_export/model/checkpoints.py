"""Weights named by a folder: the last checkpoint in it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from blu_export.errors import ModelFileError

WEIGHT_SUFFIXES = (".h5", ".keras", ".hdf5")
OUR_WEIGHTS = ("best.h5", "final.h5")
"""Files of a run folder of ``blu train``, the better one first."""
_FIX = "Write weights with model.save_weights('NAME.h5'), from a Keras model with the original's layer names."


def resolve_weights(path: str | os.PathLike[str]) -> tuple[Path, str]:
    """The weights file that a path means, and a sentence where that is not the path itself.

    A folder of checkpoints stands for the last one, as Matterport's ``find_last`` takes it: the highest
    number at the end of a name, else the last name. A run folder of ``blu train`` stands for its best weights.

    Raises:
        ModelFileError: it is a SavedModel, a TensorFlow checkpoint, or a folder without weights.
    """
    path = Path(path)
    if path.with_name(path.name + ".index").is_file() and not path.is_file():
        raise ModelFileError(f"{path} is a TensorFlow checkpoint, not a Keras weights file.", _FIX)
    if not path.is_dir():
        return path, ""
    if (path / "saved_model.pb").is_file():
        raise ModelFileError(
            f"{path} is a SavedModel, a graph of operations that does not say which tensor is which layer's.",
            _FIX,
        )
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in WEIGHT_SUFFIXES and file.is_file())
    if not files:
        raise ModelFileError(f"The folder {path} holds {_instead(path)}.", "Name the weights file: .h5 or .keras.")
    ours = next((path / name for name in OUR_WEIGHTS if path / name in files), None)
    last = ours or max(files, key=lambda file: (_number(file), file.name))
    which = "the only" if len(files) == 1 else "the best" if ours else f"the last of {len(files)}"
    return last, f"{path} is a folder: using {last.name}, {which} in it"


def _number(file: Path) -> int:
    """The epoch in ``mask_rcnn_shapes_0010.h5``; -1 without one."""
    found = re.search(r"(\d+)$", file.name.removesuffix(file.suffix).removesuffix(".weights"))
    return int(found[1]) if found else -1


def _instead(folder: Path) -> str:
    """What a folder without weights has to offer."""
    if any(folder.glob("*.index")) or (folder / "checkpoint").is_file():
        return "a TensorFlow checkpoint, not Keras weights"
    runs = sorted(child.name for child in folder.iterdir() if child.is_dir() and any(child.glob("*.h5")))
    return f"no weights, but folders with some ({', '.join(runs[:3])})" if runs else "no weights"
