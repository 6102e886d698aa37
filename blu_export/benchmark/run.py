"""Benchmark: candidates side by side on the same photo, each beside the limit of the machine.

All candidates (``candidates``) of a model are loaded, then take turns (``timing.take_turns``); the result is plain
JSON, which ``report`` and ``plots`` turn into tables and pictures.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from blu_export.benchmark.candidates import Candidate
from blu_export.benchmark.machine import describe, matrix_peaks
from blu_export.benchmark.model_run import ModelRun, Say
from blu_export.benchmark.settings import Settings
from blu_export.errors import BluError, UsageError

RESULT_VERSION = 2


def run_benchmark(
    candidates: Sequence[Candidate],
    photo: Path,
    settings: Settings,
    say: Say = lambda message: None,
    on_model: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure every candidate on one photo, and remember the fastest for ``--runtime auto``.

    What cannot be loaded here is listed under ``skipped`` with the reason.

    Args:
        say: called with a line of progress.
        on_model: called with the result so far after each model.

    Returns:
        JSON values: machine, peaks (operations per second by precision), models, rows, skipped, spread,
        curves.

    Raises:
        UsageError: there are no candidates, or two of one name: their times could not be told apart.
        BluError: nothing could be measured.
    """
    if not candidates:
        raise UsageError("There is nothing to benchmark.", "Name a model file.")
    name, times = Counter(candidate.name for candidate in candidates).most_common(1)[0]
    if times > 1:
        raise UsageError(f"There are {times} candidates named {name}.", "Give the models different names.")
    say("measuring the matrix peak of this machine")
    result: dict[str, Any] = {
        "version": RESULT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": describe() | {"threads": settings.threads},
        "peaks": matrix_peaks(settings.threads),
        "photo": {"name": photo.name, "bytes": photo.stat().st_size},
        "settings": {"repeats": settings.repeats, "warmup": settings.warmup},
        "models": {},
        "rows": [],
        "skipped": [],
        "spread": 1.0,
    }
    for model in dict.fromkeys(candidate.model for candidate in candidates):
        mine = [candidate for candidate in candidates if candidate.model == model]
        ModelRun(model, photo, settings, result, say).measure(mine)
        on_model(result)
    if not result["rows"]:
        reasons = "; ".join(f"{each['name']}: {each['why']}" for each in result["skipped"])
        raise BluError(f"Nothing could be measured. {reasons}")
    return result


def _commit() -> str | None:
    """The commit of this source tree; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
        )
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None
