"""``python models/pack.py RUN/best.h5 models/garments.h5``: a trained model as the file that is given away.

Normalization is folded into the convolutions, kernels are stored in 16 bits, and the canvas fits the photo.
"""

from __future__ import annotations

import sys

from blu_export.model.normalization import fold_normalization
from blu_export.model.weights import build_model, save_weights


def main(trained: str, packed: str) -> None:
    """Read ``trained``, write ``packed``."""
    model, _ = build_model(trained, settings=["image_resize_mode=fit"])
    fold_normalization(model)
    save_weights(model, packed, half=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
