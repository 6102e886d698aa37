"""``python models/pack.py RUN/best.h5 models/garments.h5 [CLASS=LOGIT …]``: a trained model as the file to publish.

Normalization is folded into the convolutions, kernels are stored in 16 bits, the canvas fits the photo, and the
scores of the named classes are shifted.
"""

from __future__ import annotations

import sys

from blu_export.model.normalization import fold_normalization
from blu_export.model.scores import shift_scores
from blu_export.model.weights import build_model, save_weights


def main(trained: str, packed: str, *shifts: str) -> None:
    """Read ``trained``, write ``packed``; each of ``shifts`` is CLASS=LOGIT."""
    model, _ = build_model(trained, settings=["image_resize_mode=fit"])
    fold_normalization(model)
    shift_scores(model, {name: float(logit) for name, _, logit in (shift.partition("=") for shift in shifts)})
    save_weights(model, packed, half=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
