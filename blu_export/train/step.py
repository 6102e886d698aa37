"""One training step: forward pass, the five losses, the gradient, the update."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.model.proposals import propose
from blu_export.model.roi_align import pyramid_roi_align
from blu_export.train.config import TargetConfig, TrainConfig
from blu_export.train.losses import Terms, head_losses, rpn_losses
from blu_export.train.schedule import is_backbone, learns
from blu_export.train.targets import roi_targets

_OUTPUT_DEVIATION = {
    "rpn_class_raw": 0.01,
    "rpn_bbox_pred": 0.01,
    "mrcnn_class_logits": 0.01,
    "mrcnn_bbox_fc": 0.001,
}


class Losses:
    """The training graph: a batch of samples to the losses.

    Normalisation layers use their stored statistics, as in the original: batches are small.
    """

    def __init__(self, model: MaskRCNN, canvas: tuple[int, int], config: TargetConfig) -> None:
        self.model, self.config = model, config
        self.anchors = model.anchors(canvas)
        head = model.mask_head
        self.mask_logits = keras.Model(head.inputs, head.get_layer("mrcnn_mask").output)

    def __call__(self, batch: dict[str, Any]) -> Terms:
        """Sum and count of each loss for a batch of ``data.pipeline``."""
        model, spec, config = self.model, self.model.spec, self.config
        shape = tf.shape(batch["image"])[1:3]
        *pyramid, rpn_logits, rpn_class, rpn_bbox = model.trunk(model.preprocess(batch["image"]), training=False)
        proposals = propose(
            tf.stop_gradient(rpn_class[..., 1]),
            tf.stop_gradient(rpn_bbox),
            self.anchors,
            spec,
            config.proposals,
            config.pre_nms_limit,
        )
        targets = roi_targets(
            proposals,
            batch["gt_boxes"],
            batch["gt_class_ids"],
            batch["gt_masks"],
            batch["roi_noise"],
            spec,
            config,
        )
        pooled = pyramid_roi_align(targets.rois, pyramid, spec.pool_size, shape)
        logits, _, deltas = model.box_head(pooled, training=False)
        rows = [-1, config.rois_per_image]
        logits = tf.reshape(logits, [*rows, spec.num_classes])
        deltas = tf.reshape(deltas, [*rows, spec.num_classes, 4])

        # The mask head is the dearest part per ROI: it sees the positive ones alone.
        positives = config.positive_rois
        pooled = pyramid_roi_align(targets.rois[:, :positives], pyramid, spec.mask_pool_size, shape)
        pooled = tf.boolean_mask(pooled, tf.reshape(targets.valid[:, :positives], [-1]))
        masks = tf.cast(self.mask_logits(pooled, training=False), tf.float32)
        rpn = rpn_losses(rpn_logits, rpn_bbox, batch["rpn_index"], batch["rpn_label"], batch["rpn_delta"])
        return rpn | head_losses(logits, deltas, masks, targets)


class Updater:
    """Turns gradients into new weights: clipping, SGD or AdamW, the moving average.

    The backbone and the rest have an optimizer each, for their learning rates differ. Normalisation
    layers of the backbone stay as they are, statistics, scale and offset: batches are small.
    """

    def __init__(self, model: MaskRCNN, config: TrainConfig) -> None:
        self.config = config
        groups: dict[bool, list[Any]] = {False: [], True: []}
        for name, layer in model.learned_layers().items():
            fixed = is_backbone(name) and isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = learns(name, config.layers) and not fixed
            groups[is_backbone(name)] += layer.trainable_variables
        self.groups = [(_optimizer(config), group) for group in groups.values() if group]
        self.rates = [config.backbone_rate if backbone else 1.0 for backbone, group in groups.items() if group]
        for optimizer, group in self.groups:
            optimizer.build(group)
        self.trained = [variable for _, group in self.groups for variable in group]

    @property
    def variables(self) -> list[Any]:
        """All state, in a fixed order: for checkpoints."""
        return [variable for optimizer, _ in self.groups for variable in optimizer.variables]

    @property
    def averages(self) -> list[Any]:
        """The moving averages of ``trained``, in its order."""
        return [average for optimizer, _ in self.groups for average in optimizer._model_variables_moving_average]

    def set_rate(self, rate: float) -> None:
        """Learning rate of the next step."""
        for (optimizer, _), factor in zip(self.groups, self.rates, strict=True):
            optimizer.learning_rate.assign(rate * factor)

    def apply(self, gradients: list[Any]) -> Any:
        """Update ``trained``; returns the norm of the gradient before clipping."""
        gradients, norm = tf.clip_by_global_norm(gradients, self.config.clip_norm)
        for optimizer, group in self.groups:
            optimizer.apply(gradients[: len(group)], group)
            gradients = gradients[len(group) :]
        return norm


def _optimizer(config: TrainConfig) -> keras.optimizers.Optimizer:
    common = {
        "learning_rate": config.learning_rate,
        "weight_decay": config.weight_decay,
        "use_ema": config.ema > 0,
        "ema_momentum": config.ema or 0.99,
    }
    if config.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(**common)
    else:
        optimizer = keras.optimizers.SGD(momentum=0.9, **common)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def initialize_outputs(model: MaskRCNN, seed: int) -> None:
    """Small random kernels in the output layers of RPN and heads, zero biases (He et al. 2017).

    With Keras's default the first losses are large, for the pyramid's features are.
    """
    rng = np.random.default_rng([seed, 2])
    for name, deviation in _OUTPUT_DEVIATION.items():
        layer = model.learned_layers()[name]
        kernel, bias = layer.get_weights()
        layer.set_weights([rng.normal(0.0, deviation, kernel.shape), np.zeros_like(bias)])
