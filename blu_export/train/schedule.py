"""What the learning rate is and which layers learn."""

from __future__ import annotations

import math
import re

from blu_export.train.config import TrainConfig

PARTS = ("heads", "5", "4", "3", "stem")
"""What layer sets consist of: the pyramid, the RPN and the heads; the backbone's stages, and what comes before."""
_PATTERNS = {
    "heads": r"mrcnn_.*|rpn_.*|fpn_.*",
    # Lite0 blocks whose output is C2, C3, C4, C5: 2, 4, 10, 15. ResNet names carry the stage.
    "5": r"(res|bn)5.*|block1[1-5]_.*",
    "4": r"(res|bn)4.*|block([5-9]|10)_.*",
    "3": r"(res|bn)3.*|block[34]_.*",
}


MAX_WARMUP = 0.2
"""Largest share of a stage that is warm-up: a small data set has few steps."""


def stage_rate(number: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Learning rate of step ``number`` of a run: each stage has its own warm-up and its own cosine."""
    first = 0
    for stage in config.stages:
        steps = stage.epochs * steps_per_epoch
        if number < first + steps:
            break
        first += steps
    warmup = min(config.warmup_steps, int(MAX_WARMUP * steps))
    return cosine(number - first, steps, stage.rate or config.learning_rate, warmup)


def cosine(step: int, total: int, peak: float, warmup: int) -> float:
    """Learning rate of ``step`` of ``total``: linear from 0.001 ``peak``, then a cosine to zero."""
    if step < warmup:
        return peak * (0.001 + 0.999 * step / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def part_of(layer: str) -> str:
    """Which of PARTS the layer of this name belongs to."""
    return next((part for part, pattern in _PATTERNS.items() if re.fullmatch(pattern, layer)), "stem")


def learns(layer: str, layers: str) -> bool:
    """Whether the layer of this name is trained under ``layers``, one of LAYER_SETS."""
    last = {"heads": "heads", "all": "stem"}.get(layers, layers[0])
    return part_of(layer) in PARTS[: PARTS.index(last) + 1]


def is_backbone(layer: str) -> bool:
    """Whether the layer belongs to the backbone, not to the pyramid, the RPN or the heads."""
    return part_of(layer) != "heads"


class LossScale:
    """Factor on the loss that keeps float16 gradients in range (Micikevicius et al. 2018).

    Halved when a gradient overflows, doubled after GROWTH_STEPS steps without; always 1 for the
    precisions that have float32's range.
    """

    FIRST = 2.0**15
    GROWTH_STEPS = 2000

    def __init__(self, precision: str, scale: float = 1.0, age: int = 0) -> None:
        self.adapts = precision == "float16"
        self.scale = (scale if scale > 1 else self.FIRST) if self.adapts else 1.0
        self.age = age
        """Steps since the scale last changed."""

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite may be the fault of the scale."""
        return self.adapts and self.scale > 1

    def update(self, finite: bool) -> None:
        """Note whether the last gradient was finite."""
        if not self.adapts:
            return
        self.age = self.age + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.age == self.GROWTH_STEPS:
            self.scale, self.age = self.scale * 2, 0
