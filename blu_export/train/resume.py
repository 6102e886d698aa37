"""Resuming a run: its own settings, and what may change of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blu_export.errors import UsageError
from blu_export.train.config import RunConfig

CHANGEABLE = tuple(
    f"train.{name}"
    for name in ("learning_rate", "epochs", "layers", "unreadable", "validate_every", "validate_photos", "patience",
                 "keep_checkpoints", "cache_bytes", "workers")
)  # fmt: skip
"""What a resumed run may change: it affects only what is still to come."""


def resumed_run(folder: Path, options: Mapping[str, Any], settings: Sequence[str]) -> RunConfig:
    """The settings of the run in ``folder``, with what ``options`` and ``settings`` change for what is to come.

    Raises:
        UsageError: there is no run, or one of the settings belongs to the whole of it.
    """
    given = {name: value for name, value in options.items() if value is not None}
    names = [*given, *(text.partition("=")[0].strip() for text in settings)]
    fixed = [name for name in names if name not in CHANGEABLE]
    if fixed:
        raise UsageError(
            f"A run is resumed with the settings it was started with; {', '.join(fixed)} cannot change.",
            "Write: blu train --resume --out FOLDER, with --lr, --epochs or --layers if the rest is to differ.",
        )
    if not (folder / "config.toml").exists():
        raise UsageError(f"There is no run in {folder}.", "Name the folder of a run with --out.")
    run = RunConfig.read(folder / "config.toml")
    if not names:
        return run
    from blu_export.train.checkpoint import epoch_of, latest_checkpoint

    done = epoch_of(latest_checkpoint(folder))
    asked = RunConfig.read(None, settings, given).train
    values = {name: getattr(asked, name) for name in (path.partition(".")[2] for path in names)}
    plan = [values.pop(name, None) for name in ("layers", "epochs", "learning_rate")]
    changed = dataclasses.replace(run.train, **values).changed(done, *plan)
    differ = [
        f"{f.name} {getattr(run.train, f.name)} -> {getattr(changed, f.name)}"
        for f in dataclasses.fields(changed)
        if getattr(run.train, f.name) != getattr(changed, f.name)
    ]
    if not differ:
        return run
    return dataclasses.replace(run, train=changed, changes=run.changes | {str(done): "; ".join(differ)})
