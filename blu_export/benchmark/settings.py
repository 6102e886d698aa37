"""How long and how much a benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass, field

from blu_export.runtime.cpu import usable_cores


@dataclass(frozen=True)
class Settings:
    """How long and how much to measure."""

    repeats: int = 15
    """Rounds of all candidates of a model; slow models get fewer, see ``timing.take_turns``."""
    limit_s: float = 120
    """Seconds after which the rounds of a model end."""
    warmup: int = 2
    batches: tuple[int, ...] = (1, 4, 8)
    rounds: int = 3
    """Repeats of what is measured one candidate at a time: batches, curves, fresh processes."""
    cold: bool = True
    profile: bool = True
    curves: bool = True
    threads: int = field(default_factory=usable_cores)
    remember: bool = True
    """Keep what was fastest for ``--runtime auto``, unless the machine was noisy."""


QUICK = Settings(repeats=5, warmup=1, batches=(1,), rounds=1, curves=False, remember=False)
