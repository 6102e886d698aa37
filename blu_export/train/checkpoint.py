"""Epoch checkpoints: all that a run needs to go on as if it had never stopped.

One ``.npz`` file per epoch, written under a temporary name and renamed: a kill at any moment leaves the
last complete one. Entries: ``model/<layer>/<n>`` (weights), ``optimizer/<part>/<n>`` (step counts, momenta,
moving averages) and ``state`` (JSON: progress and history). It is written before the epoch is validated; what
validation adds is in a ``.json`` file beside it, a newer state. Samples and learning rates are functions of the
step's number, so this is the whole state of the data and of the schedule too.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.errors import BluError, CheckFailedError, ModelFileError
from blu_export.files import atomic_write
from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.train.updater import Updater

_FOLDER = "checkpoints"


@dataclass
class Progress:
    """Where a run stands; all of it is in its checkpoints."""

    epoch: int = 0
    """Epochs completed."""
    best: float = -1.0
    stale: int = 0
    """Validations since the best."""
    scale: float = 1.0
    """See LossScale."""
    scale_age: int = 0
    unvalidated: bool = False
    """Whether ``epoch`` is still to be validated."""


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


def epoch_of(checkpoint: Path | None) -> int:
    """Epochs done at a checkpoint; 0 without one."""
    return int(checkpoint.stem.rpartition("-")[2]) if checkpoint else 0


def save_checkpoint(path: Path, model: MaskRCNN, updater: Updater, state: dict[str, Any], keep: int) -> None:
    """Write weights, the updater's variables and ``state`` (JSON values); leave the ``keep`` newest files.

    Raises:
        CheckFailedError: a value is not finite; the older checkpoints stay.
        BluError: it cannot be written.
    """
    arrays = {
        f"model/{name}/{n}": value
        for name, layer in model.learned_layers().items()
        for n, value in enumerate(layer.get_weights())
    }
    arrays |= {f"optimizer/{name}": variable.numpy() for name, variable in updater.variables.items()}
    broken = next((name for name, value in arrays.items() if not np.isfinite(value).all()), None)
    if broken is not None:
        raise CheckFailedError(f"Training diverged: {broken} is not finite.")
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    path.with_suffix(".json").unlink(missing_ok=True)  # of a file of this name that was removed
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise BluError(
            f"The checkpoint {path} cannot be written: {error.strerror or error}.",
            f"Free some space and continue with: blu train --resume --out {path.parents[1]}",
        ) from error
    for old in checkpoints(path.parents[1])[:-keep]:
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink()


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state that stands for the one in the checkpoint ``path``."""
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(state), "utf-8")


def load_checkpoint(path: Path, model: MaskRCNN, updater: Updater) -> dict[str, Any]:
    """Restore ``model`` and ``updater``; returns the newest state.

    The state after epoch 0 has no use for an updater: it is as it was made.

    Raises:
        ModelFileError: the file is corrupt or belongs to a run with other settings.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            for name, layer in model.learned_layers().items():
                layer.set_weights([arrays[f"model/{name}/{n}"] for n in range(len(layer.weights))])
            if epoch_of(path):
                for name, variable in updater.variables.items():
                    variable.assign(arrays[f"optimizer/{name}"])
            state: dict[str, Any] = json.loads(arrays["state"].tobytes())
        newer = path.with_suffix(".json")
        if newer.exists():
            state = json.loads(newer.read_text("utf-8"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"The checkpoint {path} does not fit this run: {error}.",
            "Resume with the settings it was started with. A damaged file can be removed: the one before it is taken.",
        ) from error
    return state
