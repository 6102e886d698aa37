"""Interleaved timings: candidates take turns, so that a drift of the machine's speed falls on all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np

from blu_export.detector import Detector

T = TypeVar("T")

NOISY_SPREAD = 1.15
"""p90 over p10 of a fixed piece of work above which the machine was too busy for exact numbers."""
ENOUGH_SECONDS = 10.0
"""What is measured on its own is not repeated once it has taken this long in all."""
FEWEST = 5
"""Rounds below which a median says little."""
_YARDSTICK_SIZE = 768
_SPIN_SECONDS = 0.1
"""NumPy's matrix threads spin for some 25 ms after a product; what is timed next would share the cores with them."""


@dataclass(frozen=True)
class Timing:
    """Distribution of one candidate's times, in seconds."""

    p50: float
    p90: float
    p99: float
    fastest: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """Summarize at least one measured time."""
        p50, p90, p99 = (float(np.percentile(seconds, p)) for p in (50, 90, 99))
        return cls(p50, p90, p99, min(seconds), len(seconds))

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Rounds:
    """Times of all candidates, and how steady the machine was meanwhile."""

    seconds: dict[str, list[float]]
    spread: float
    """p90 over p10 of the yardstick, a matrix product run once a round."""

    @property
    def noisy(self) -> bool:
        """Whether the machine was too unsteady for small differences to mean anything."""
        return self.spread > NOISY_SPREAD


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    on_round: Callable[[int], None] = lambda done: None,
    limit_s: float = math.inf,
) -> Rounds:
    """Run every candidate once a round, ``repeats`` rounds after ``warmup`` that do not count.

    The order turns by one each round, so that no candidate always follows the same other. Slow candidates get
    fewer rounds: after FEWEST none is begun once all have taken ``limit_s``.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    yardstick: list[float] = []
    for done in range(-warmup, repeats):
        if done >= FEWEST and sum(map(sum, seconds.values())) > limit_s:
            break
        turn = done % len(names)
        for name in names[turn:] + names[:turn]:
            elapsed = _seconds(candidates[name])
            if done >= 0:
                seconds[name].append(elapsed)
        if done >= 0:
            yardstick.append(_yardstick())
        on_round(done + warmup + 1)
    low, high = np.percentile(yardstick, (10, 90))
    return Rounds(seconds, float(high / low))


def settled(detector: Detector, photo: Any) -> Detector:
    """The detector, after as many calls as its runner needs until the photo's canvas runs at full speed."""
    for _ in range(detector.runner.settles_after):
        detector(photo)
    return detector


def enough_of(measure: Callable[[], T], repeats: int, seconds: Callable[[T], float]) -> list[T]:
    """Results of one measurement alone, after a first one that does not count.

    At most ``repeats``, and fewer of a slow one: none is begun once they took ENOUGH_SECONDS in all.

    Args:
        seconds: what a result took.
    """
    measure()
    found: list[T] = []
    while not found or (len(found) < repeats and sum(map(seconds, found)) < ENOUGH_SECONDS):
        found.append(measure())
    return found


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time of one action alone; see ``enough_of``."""
    return float(np.median(enough_of(lambda: _seconds(action), repeats, float)))


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _yardstick() -> float:
    """Seconds of a fixed matrix product (the best of three, so that only a busy machine slows it)."""
    a = np.ones((_YARDSTICK_SIZE, _YARDSTICK_SIZE), np.float32)
    fastest = min(_seconds(lambda: a @ a) for _ in range(3))
    time.sleep(_SPIN_SECONDS)
    return fastest
