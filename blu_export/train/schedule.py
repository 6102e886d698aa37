"""What the learning rate is and which layers learn."""

from __future__ import annotations

import math
import re

from blu_export.errors import UsageError

LAYER_SETS = ("heads", "5+", "4+", "3+", "all")
_HEAD = r"mrcnn_.*|rpn_.*|fpn_.*"
# Lite0 blocks whose output is C2, C3, C4, C5: 2, 4, 10, 15. ResNet names carry the stage.
_STAGES = {
    5: r"(res|bn)5.*|block1[1-5]_.*",
    4: r"(res|bn)4.*|block([5-9]|10)_.*",
    3: r"(res|bn)3.*|block[34]_.*",
}


def cosine(step: int, total: int, peak: float, warmup: int) -> float:
    """Learning rate of ``step`` of ``total``: linear from 0.001 ``peak``, then a cosine to zero."""
    if step < warmup:
        return peak * (0.001 + 0.999 * step / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def learns(layer: str, layers: str) -> bool:
    """Whether the layer of this name is trained under ``layers``, one of LAYER_SETS."""
    if layers not in LAYER_SETS:
        raise UsageError(f"There is no layer set '{layers}'.", f"Use one of {', '.join(LAYER_SETS)}.")
    if layers == "all":
        return True
    stages = [] if layers == "heads" else range(int(layers[0]), 6)
    return re.fullmatch("|".join([_HEAD, *(_STAGES[stage] for stage in stages)]), layer) is not None


def is_backbone(layer: str) -> bool:
    """Whether the layer belongs to the backbone, not to the pyramid, the RPN or the heads."""
    return re.fullmatch(_HEAD, layer) is None
