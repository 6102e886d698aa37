"""Photos in and masks out: safe decoding, and the way onto a model's canvas and back.

    decode ── untrusted bytes to RGB pixels   (structure ── limits counted on the bytes before)
      bands ── TIFFs of other bands, for models of other channels
    canvas ── mold: a photo scaled and padded, as a model takes it
    results ── unmold: what a model found, in pixels of the photo

Pixels and masks are the original program's (Matterport Mask_RCNN, commit 3deaec5, with scikit-image 0.26).
"""

from blu_export.image.canvas import Molded, canvas_of, mold, resize_scale, stack
from blu_export.image.decode import MAX_PIXELS, Source, decode
from blu_export.image.results import unmold

__all__ = ["MAX_PIXELS", "Molded", "Source", "canvas_of", "decode", "mold", "resize_scale", "stack", "unmold"]
