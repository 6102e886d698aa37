"""Batch normalization folded into the layers before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper

from blu_export.spec import ModelSpec

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

SPEC = ModelSpec(
    class_names=("BG", "coat", "shoe"), backbone="efficientnet_lite0", image_min_dim=128, image_max_dim=128,
    top_down_pyramid_size=16, rpn_channels=16, fpn_classif_fc_layers_size=32, mask_channels=16,
)  # fmt: skip


def model_with_statistics() -> MaskRCNN:
    from keras import layers

    from blu_export.model.mask_rcnn import MaskRCNN

    model, rng = MaskRCNN(SPEC), np.random.default_rng(0)
    for layer in model.learned_layers().values():
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])
    return model


def test_a_folded_model_computes_the_same() -> None:
    from blu_export.model.normalization import fold_normalization

    model = model_with_statistics()
    image = np.random.default_rng(1).normal(0, 50, (1, 128, 128, 3)).astype(np.float32)
    rois = np.random.default_rng(2).normal(size=(3, 14, 14, 16)).astype(np.float32)
    before = [*model.trunk(image), *model.box_head(rois[:, :7, :7]), model.mask_head(rois)]
    fold_normalization(model)
    after = [*model.trunk(image), *model.box_head(rois[:, :7, :7]), model.mask_head(rois)]
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4 * np.abs(a).max())


def test_kernels_in_half_are_those_that_are_exported() -> None:
    from blu_export.export.learned import subnetworks
    from blu_export.model.normalization import fold_normalization

    model = model_with_statistics()
    fold_normalization(model)
    for layer in model.learned_layers().values():
        layer.set_weights([w.astype(np.float16).astype(np.float32) if w.ndim > 1 else w for w in layer.get_weights()])
    kernels = [
        numpy_helper.to_array(tensor)
        for part in subnetworks(model, 18).values()
        for tensor in part.graph.initializer
        if tensor.name.endswith("/kernel")
    ]
    assert len(kernels) > 50
    for kernel in kernels:
        np.testing.assert_array_equal(kernel, kernel.astype(np.float16).astype(np.float32))
