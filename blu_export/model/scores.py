"""Score calibration: a constant on the logit of a class, folded into the bias of the class layer.

One number per class is vector scaling without the scale (Guo et al. 2017): it moves the score at which detections of a
class are as often right as wrong to 0.5, and leaves their order within the class nearly as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from blu_export.errors import UsageError

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN


def shift_scores(model: MaskRCNN, logits: Mapping[str, float]) -> None:
    """Add a constant to the logit of each named class, in place; positive: higher scores.

    Raises:
        UsageError: the model has no such class.
    """
    names = model.spec.class_names
    if unknown := sorted(set(logits) - set(names)):
        raise UsageError(f"The model has no class {', '.join(unknown)}.", f"Its classes are {', '.join(names)}.")
    layer = model.learned_layers()["mrcnn_class_logits"]
    kernel, bias = layer.get_weights()
    layer.set_weights([kernel, bias + [logits.get(name, 0.0) for name in names]])
