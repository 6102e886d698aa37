"""Benchmark: candidates side by side on the same photo, each beside the limit of the machine.

A candidate is one model on one runtime. All are loaded, then take turns (``timing.take_turns``); the
result is plain JSON, which ``report`` turns into tables and plots.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.detector import Detector
from blu_export.errors import BluError, UsageError
from blu_export.measure.cold import measure_cold
from blu_export.measure.flops import count_flops
from blu_export.measure.machine import describe, matrix_peaks
from blu_export.measure.onnx_stages import profile_stages
from blu_export.measure.timing import Timing, take_turns

RESULT_VERSION = 1
BATCHES = (1, 4, 8)
STAGES = ("decode", "mold", "run", "unmold")


@dataclass(frozen=True)
class Candidate:
    """One model on one runtime."""

    model: str
    """Name of the model: candidates of the same model are compared with each other."""
    runtime: str
    """As shown in the table."""
    precision: str
    open: Callable[[], Detector]
    onnx: Path | None = None
    """The file, where it is ours: its FLOPs are counted and its stages profiled."""
    cold: tuple[Path, str, str] | None = None
    """(model file, runtime, precision) for ``blu_export.load`` in a fresh process."""
    ours: bool = True
    """False for a peer: what a user would have without this project."""
    notes: dict[str, Any] = field(default_factory=dict)
    """More figures to keep beside the times, such as average precision."""

    @property
    def name(self) -> str:
        """Unique in a run."""
        return f"{self.model} · {self.runtime} · {self.precision}"


@dataclass(frozen=True)
class Settings:
    """How long and how much to measure."""

    repeats: int = 15
    warmup: int = 2
    batches: tuple[int, ...] = BATCHES
    cold: bool = True
    profile: bool = True
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))


def run_benchmark(
    candidates: list[Candidate],
    photo: Path,
    settings: Settings,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Measure every candidate on one photo.

    Args:
        say: called with a line of progress.

    Returns:
        JSON values: machine, peaks (operations per second by precision), models, rows.
    """
    if not candidates:
        raise UsageError("There is nothing to benchmark.", "Name a model file.")
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
        "spread": 1.0,
    }
    for model in dict.fromkeys(candidate.model for candidate in candidates):
        _measure_model(model, [c for c in candidates if c.model == model], photo, settings, result, say)
    return result


def _measure_model(
    model: str,
    candidates: list[Candidate],
    photo: Path,
    settings: Settings,
    result: dict[str, Any],
    say: Callable[[str], None],
) -> None:
    encoded = photo.read_bytes()
    detectors: dict[str, Detector] = {}
    for candidate in candidates:
        say(f"loading {candidate.name}")
        detectors[candidate.name] = candidate.open()
    stage_times: dict[str, list[dict[str, float]]] = {name: [] for name in detectors}

    def detect_once(name: str) -> Callable[[], None]:
        def action() -> None:
            detectors[name](encoded)
            stage_times[name].append(dict(detectors[name].timings))

        return action

    rounds = take_turns(
        {name: detect_once(name) for name in detectors},
        settings.repeats,
        settings.warmup,
        lambda done: say(f"{model}: round {done} of {settings.repeats + settings.warmup}"),
    )
    result["spread"] = max(result["spread"], rounds.spread)
    reference = detectors[candidates[0].name]
    found = len(reference(encoded))
    flops = _flops(candidates, reference, found)
    result["models"][model] = {
        "canvas": reference.spec.canvas,
        "backbone": reference.spec.backbone,
        "detections": found,
        "gflop": flops.total / 1e9 if flops else None,
        "gflop_by_stage": {k: v / 1e9 for k, v in flops.by_stage.items()} if flops else None,
    }
    for candidate in candidates:
        detector = detectors[candidate.name]
        stages = stage_times[candidate.name][settings.warmup :]
        medians = {stage: float(np.median([s.get(stage, 0.0) for s in stages])) for stage in STAGES}
        row: dict[str, Any] = {
            "model": model,
            "runtime": candidate.runtime,
            "precision": candidate.precision,
            "ours": candidate.ours,
            "detections": len(detector(encoded)),
            "end_to_end": Timing.of(rounds.seconds[candidate.name]).to_json(),
            "stages": medians,
            "notes": candidate.notes,
        }
        if flops:
            row["gflops"] = flops.total / medians["run"] / 1e9
            if peak := result["peaks"].get(candidate.precision):
                row["share_of_peak"] = flops.total / medians["run"] / peak
        result["rows"].append(row)
    for row, candidate in zip(result["rows"][-len(candidates) :], candidates, strict=True):
        row["photos_per_second"] = _throughput(detectors[candidate.name], encoded, settings, candidate, say)
        if settings.profile and candidate.onnx and candidate.runtime == "onnxruntime":
            say(f"profiling {candidate.name}")
            row["onnx_stages"] = _profile(candidate.onnx, detectors[candidate.name], encoded, settings)
    for detector in detectors.values():
        detector.runner.close()
    detectors.clear()
    for row, candidate in zip(result["rows"][-len(candidates) :], candidates, strict=True):
        if settings.cold and candidate.cold:
            say(f"fresh process: {candidate.name}")
            row["fresh_process"] = _best_cold(*candidate.cold, photo)


def _best_cold(model: Path, runtime: str, precision: str, photo: Path) -> dict[str, float]:
    """The median of three fresh processes, figure by figure."""
    runs = [measure_cold(model, photo, runtime, precision) for _ in range(3)]
    return {key: float(np.median([run[key] for run in runs])) for key in runs[0]}


def _throughput(
    detector: Detector, encoded: bytes, settings: Settings, candidate: Candidate, say: Callable[[str], None]
) -> dict[str, float]:
    """Photos per second when the detector is handed lists of each batch size."""
    rates = {}
    for batch in settings.batches:
        say(f"batch {batch}: {candidate.name}")
        photos = [encoded] * batch
        try:
            rounds = take_turns({"batch": lambda photos=photos, batch=batch: detector(photos, batch=batch)}, 3, 1)
        except BluError:
            continue  # A peer that holds one photo at a time has no figure for more.
        rates[str(batch)] = batch / float(np.median(rounds.seconds["batch"]))
    return rates


def _flops(candidates: list[Candidate], reference: Detector, detections: int) -> Any:
    path = next((c.onnx for c in candidates if c.onnx and c.precision == "float32"), None)
    if path is None or reference.spec.canvas is None:
        return None
    import onnx

    return count_flops(onnx.load(path), reference.spec.canvas, detections)


def _profile(path: Path, detector: Detector, encoded: bytes, settings: Settings) -> dict[str, float]:
    from blu_export.image import decode, mold

    molded = mold(decode(encoded), detector.spec)
    window = np.asarray(molded.window, np.float32)[None]
    return profile_stages(path, molded.canvas[None], window, settings.threads)


def _commit() -> str | None:
    """The commit of this source tree; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
