"""Epoch checkpoints: all that a run needs to go on as if it had never stopped.

One ``.npz`` file, written to a temporary name and renamed, so a kill at any moment leaves the last
complete one. Entries: ``model/<layer>/<n>`` (weights), ``optimizer/<n>`` (its variables: step count,
momenta, moving average of the weights) and ``state`` (JSON: step, history, configuration). Samples and
learning rates are functions of the step, so the step is their whole state.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.errors import ModelFileError
from blu_export.model.mask_rcnn import MaskRCNN


def save_checkpoint(path: Path, model: MaskRCNN, optimizer: Any, state: dict[str, Any]) -> None:
    """Write weights, optimizer and ``state`` (JSON values) to ``path``."""
    arrays = {
        f"model/{name}/{n}": value
        for name, layer in model.learned_layers().items()
        for n, value in enumerate(layer.get_weights())
    }
    arrays |= {f"optimizer/{n}": np.asarray(v) for n, v in enumerate(optimizer.variables)}
    arrays["state"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_checkpoint(path: Path, model: MaskRCNN, optimizer: Any) -> dict[str, Any]:
    """Restore ``model`` and the built ``optimizer`` from ``path``; returns the state.

    Raises:
        ModelFileError: the file is corrupt or belongs to another model or optimizer.
    """
    try:
        with np.load(path) as arrays:
            for name, layer in model.learned_layers().items():
                layer.set_weights([arrays[f"model/{name}/{n}"] for n in range(len(layer.weights))])
            for n, variable in enumerate(optimizer.variables):
                variable.assign(arrays[f"optimizer/{n}"])
            state: dict[str, Any] = json.loads(arrays["state"].tobytes())
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(
            f"The checkpoint {path} does not fit this run: {error}.", "Resume with the settings it was started with."
        ) from error
    return state
