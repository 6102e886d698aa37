"""The GPU an engine is for: people name cards, builders want compute capabilities."""

from __future__ import annotations

import re
from dataclasses import dataclass

from blu_export.errors import UsageError

THIS_GPU = "this-gpu"

CARDS = {
    "t4": "7.5",
    "rtx2060": "7.5",
    "rtx2070": "7.5",
    "rtx2080": "7.5",
    "rtx2080ti": "7.5",
    "titanrtx": "7.5",
    "a100": "8.0",
    "a30": "8.0",
    "a10": "8.6",
    "a10g": "8.6",
    "a40": "8.6",
    "a2": "8.6",
    "a4000": "8.6",
    "a5000": "8.6",
    "a6000": "8.6",
    "rtx3060": "8.6",
    "rtx3070": "8.6",
    "rtx3080": "8.6",
    "rtx3090": "8.6",
    "l4": "8.9",
    "l40": "8.9",
    "l40s": "8.9",
    "rtx4060": "8.9",
    "rtx4070": "8.9",
    "rtx4080": "8.9",
    "rtx4090": "8.9",
    "h100": "9.0",
    "h200": "9.0",
    "b200": "10.0",
    "rtx5070": "12.0",
    "rtx5080": "12.0",
    "rtx5090": "12.0",
}
"""Card -> compute capability (https://developer.nvidia.com/cuda-gpus). Any other card: smXY."""

OLDEST = (7, 5)
"""Turing: the oldest that TensorRT 10 and 11 and TensorRT-RTX build for."""


@dataclass(frozen=True)
class Target:
    """A GPU to build for."""

    name: str
    """As the user named it."""
    capability: tuple[int, int]
    """Compute capability, (7, 5) for a T4."""

    @property
    def sm(self) -> str:
        """``sm75``."""
        return f"sm{self.capability[0]}{self.capability[1]}"

    def __str__(self) -> str:
        return self.sm if self.name == self.sm else f"{self.name} ({self.sm})"


def parse_target(text: str) -> Target:
    """A card's name (``t4``, ``RTX 3090``) or a compute capability (``sm86``, ``8.6``).

    Raises:
        UsageError: no such card, or one that TensorRT does not support any more.
    """
    plain = re.sub(r"[\s_-]|nvidia|geforce|tesla", "", text.lower())
    capability = CARDS.get(plain) or (CARDS.get(f"rtx{plain}") if plain.isdecimal() else None)
    if capability is None and (match := re.fullmatch(r"(?:sm)?(\d{1,2})\.?(\d)", plain)):
        capability = ".".join(match.groups())
    if capability is None:
        raise UsageError(
            f"There is no target '{text}'.",
            f"Name a card ({', '.join(list(CARDS)[:6])}, …), a capability such as sm86, or {THIS_GPU}.",
        )
    major, minor = (int(n) for n in capability.split("."))
    if (major, minor) < OLDEST:
        raise UsageError(f"{text} is older than Turing (sm75).", "TensorRT supports no older card any more.")
    return Target(text, (major, minor))
