"""Stages of a run: which layers learn for how many epochs, and at what rate; and how a resumed run changes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from blu_export.errors import UsageError

LAYER_SETS = ("heads", "5+", "4+", "3+", "all")
"""What can be trained: the pyramid, the RPN and the heads; these and the backbone from a stage on."""


@dataclass(frozen=True)
class Stage:
    """Some epochs that train one set of layers."""

    layers: str
    epochs: int
    rate: float | None = None
    """Learning rate after the warm-up; None: that of the run."""

    def __str__(self) -> str:
        return f"{self.layers}:{self.epochs}" + ("" if self.rate is None else f"@{self.rate:g}")


def parse_stages(text: str, epochs: int) -> tuple[Stage, ...]:
    """Stages from ``all`` (for ``epochs``) or ``heads:5@1e-3,4+:5,all:20@1e-4``.

    Raises:
        UsageError: an unknown layer set, or a stage without epochs or with an impossible rate.
    """
    parts = [part.strip() for part in text.split(",")]
    found = [re.fullmatch(r"([^:@]*)(?::\s*(\d+))?\s*(?:@\s*([^:@]+))?", part) for part in parts]
    fix = "Write for example heads:5,4+:5,all:20, or with rates heads:5@0.01,all:20@0.001."
    stages = []
    for part, match in zip(parts, found, strict=True):
        if match is None:
            raise UsageError(f"'{text}' is not a layer schedule: '{part}'.", fix)
        name, count, rate = match[1].strip(), match[2], match[3]
        if name not in LAYER_SETS:
            raise UsageError(f"The setting train.layers '{name}' must be of {', '.join(LAYER_SETS)}.", fix)
        if count is None and len(parts) > 1:
            raise UsageError(f"The setting train.layers '{text}' needs epochs in stages.", fix)
        stages.append(Stage(name, epochs if count is None else int(count), _rate(rate, text, fix)))
    if any(stage.epochs < 1 for stage in stages):
        raise UsageError(f"The setting train.layers '{text}' needs at least one epoch in each stage.", fix)
    return tuple(stages)


def _rate(text: str | None, schedule: str, fix: str) -> float | None:
    if text is None:
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise UsageError(f"'{schedule}' is not a layer schedule: '@{text}' is not a learning rate.", fix)
    return rate


def change_stages(
    stages: Sequence[Stage],
    done: int,
    default: float,
    *,
    layers: str | None = None,
    epochs: int | None = None,
    rate: float | None = None,
) -> tuple[Stage, ...]:
    """The stages of a run with other ones for what is still to come.

    A stage that is under way and merely becomes longer or shorter stays one stage.

    Args:
        stages: the run's.
        done: epochs that are done.
        default: learning rate of stages without one.
        layers: the layers, or stages, of what is to come; None: as planned.
        epochs: of the whole run; None: as planned. Stages in ``layers`` that count their own epochs win.
        rate: learning rate of what is to come, where ``layers`` does not say; None: as planned.

    Raises:
        UsageError: nothing would be left to do, or ``layers`` is not a schedule.
    """
    past, future = _split([replace(stage, rate=stage.rate or default) for stage in stages], done)
    total = sum(stage.epochs for stage in stages) if epochs is None else epochs
    if epochs is not None and epochs <= done:
        raise UsageError(
            f"The run is after epoch {done} already, and --epochs counts all of them.", f"Give more than {done}."
        )
    if layers is not None:
        counted = ":" in layers
        if not counted and total <= done:
            raise UsageError(f"All {done} epochs of the run are done.", "Say how many there should be: --epochs.")
        future = list(parse_stages(layers, max(1, total - done)))
        future = [replace(stage, rate=stage.rate or rate or default) for stage in future]
    else:
        future = _resize(future, total - done, past)
        future = [stage if rate is None else replace(stage, rate=rate) for stage in future]
    if past and future and (past[-1].layers, past[-1].rate) == (future[0].layers, future[0].rate):
        joined = replace(future[0], epochs=past[-1].epochs + future[0].epochs)
        past, future = past[:-1], [joined, *future[1:]]
    return (*past, *future)


def _split(stages: Sequence[Stage], done: int) -> tuple[list[Stage], list[Stage]]:
    """What lies before and after ``done`` epochs; a stage that is under way is in both."""
    past, future = [], []
    for stage in stages:
        before = min(stage.epochs, done)
        done -= before
        if before:
            past.append(replace(stage, epochs=before))
        if before < stage.epochs:
            future.append(replace(stage, epochs=stage.epochs - before))
    return past, future


def _resize(future: list[Stage], epochs: int, past: list[Stage]) -> list[Stage]:
    """Stages of ``epochs`` together: the last ones are cut, or the last one goes on."""
    kept: list[Stage] = []
    for stage in future:
        count = min(stage.epochs, epochs)
        epochs -= count
        if count:
            kept.append(replace(stage, epochs=count))
    if epochs:
        last = (kept or past)[-1]
        kept = [*kept[:-1], replace(last, epochs=epochs + (last.epochs if kept else 0))]
    return kept
