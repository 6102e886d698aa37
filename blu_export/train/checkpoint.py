"""Epoch checkpoints: all that a run needs to go on as if it had never stopped.

One ``.npz`` file per epoch, written under a temporary name and renamed: a kill at any moment leaves the
last complete one. Entries: ``model/<layer>/<n>`` (weights), ``optimizer/<n>`` (step counts, momenta,
moving averages) and ``state`` (JSON: progress and history). Samples and learning rates are functions
of the step's number, so this is the whole state of the data and of the schedule too.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.errors import ModelFileError
from blu_export.files import atomic_write
from blu_export.model.mask_rcnn import MaskRCNN

_FOLDER = "checkpoints"


def checkpoint_path(folder: Path, epoch: int) -> Path:
    """Where a run keeps its state after ``epoch`` epochs."""
    return folder / _FOLDER / f"epoch-{epoch}.npz"


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = {}
    for path in (folder / _FOLDER).glob("epoch-*.npz"):
        if match := re.fullmatch(r"epoch-(\d+)\.npz", path.name):
            found[int(match[1])] = path
    return [found[epoch] for epoch in sorted(found)]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run."""
    return next(reversed(checkpoints(folder)), None)


def save_checkpoint(path: Path, model: MaskRCNN, updater: Any, state: dict[str, Any], keep: int) -> None:
    """Write weights, the updater's variables and ``state`` (JSON values); leave the ``keep`` newest files."""
    arrays = {
        f"model/{name}/{n}": value
        for name, layer in model.learned_layers().items()
        for n, value in enumerate(layer.get_weights())
    }
    arrays |= {f"optimizer/{n}": variable.numpy() for n, variable in enumerate(updater.variables)}
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    for old in checkpoints(path.parents[1])[:-keep]:
        old.unlink()


def load_checkpoint(path: Path, model: MaskRCNN, updater: Any) -> dict[str, Any]:
    """Restore ``model`` and ``updater``; returns the state.

    Raises:
        ModelFileError: the file is corrupt or belongs to a run with other settings.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for name, layer in model.learned_layers().items():
                layer.set_weights([arrays[f"model/{name}/{n}"] for n in range(len(layer.weights))])
            for n, variable in enumerate(updater.variables):
                variable.assign(arrays[f"optimizer/{n}"])
            state: dict[str, Any] = json.loads(arrays["state"].tobytes())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"The checkpoint {path} does not fit this run: {error}.", "Resume with the settings it was started with."
        ) from error
    return state
