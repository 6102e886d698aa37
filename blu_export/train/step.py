"""One training step: forward pass, the five losses, the gradient, the update."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.model.proposals import propose
from blu_export.model.roi_align import pyramid_roi_align
from blu_export.train.config import LOSSES, TrainConfig
from blu_export.train.losses import Terms, head_losses, rpn_losses
from blu_export.train.targets import roi_targets
from blu_export.train.updater import Updater

Batch = dict[str, Any]
"""What ``data.pipeline.batches`` gives."""

_SUM = tf.distribute.ReduceOp.SUM
_OUTPUT_DEVIATION = {
    "rpn_class_raw": 0.01,
    "rpn_bbox_pred": 0.01,
    "mrcnn_class_logits": 0.01,
    "mrcnn_bbox_fc": 0.001,
}


def initialize_outputs(model: MaskRCNN, seed: int, layers: set[str]) -> None:
    """Small random kernels and zero biases in those of ``layers`` that are outputs of RPN or box head.

    The deviations are those of Faster R-CNN. Keras's default is far larger, and so would be the first
    losses, for the pyramid's features are large.
    """
    rng = np.random.default_rng([seed, 2])
    for name, deviation in _OUTPUT_DEVIATION.items():
        layer = model.learned_layers()[name]
        kernel, bias = layer.get_weights()
        drawn = rng.normal(0.0, deviation, kernel.shape)
        if name in layers:
            layer.set_weights([drawn, np.zeros_like(bias)])


class Losses:
    """The training graph: a batch to the losses.

    Normalization layers use their stored statistics, as in the original: batches are small.
    """

    def __init__(self, model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig) -> None:
        self.model, self.config = model, config.targets
        self.anchors = model.anchors(canvas)
        head = model.mask_head
        self.mask_logits = keras.Model(head.inputs, head.get_layer("mrcnn_mask").output)

    def __call__(self, batch: Batch) -> Terms:
        """Sum and count of each loss."""
        model, spec, config = self.model, self.model.spec, self.config
        shape = tf.shape(batch["image"])[1:3]
        *pyramid, rpn_logits, rpn_class, rpn_bbox = model.trunk(model.preprocess(batch["image"]), training=False)
        pyramid = [tf.cast(level, tf.float32) for level in pyramid]
        proposals = propose(
            tf.stop_gradient(rpn_class[..., 1]),
            tf.stop_gradient(rpn_bbox),
            self.anchors,
            spec,
            config.proposals,
            config.pre_nms_limit,
        )
        # A diverged RPN must get as far as the check of the losses.
        proposals = tf.where(tf.math.is_finite(proposals), proposals, 0.0)
        truth = (batch["gt_boxes"], batch["gt_class_ids"], batch["gt_masks"])
        targets = roi_targets(proposals, *truth, batch["roi_noise"], spec, config)
        pooled = pyramid_roi_align(targets.rois, pyramid, spec.pool_size, shape)
        logits, deltas = box_head_products(model.box_head, pooled)
        rows = [-1, config.rois_per_image]
        logits = tf.reshape(logits, [*rows, spec.num_classes])
        deltas = tf.reshape(deltas, [*rows, spec.num_classes, 4])

        # The mask head costs the most per ROI: it sees only the positive ones.
        positives = config.positive_rois
        pooled = pyramid_roi_align(targets.rois[:, :positives], pyramid, spec.mask_pool_size, shape)
        pooled = tf.boolean_mask(pooled, tf.reshape(targets.valid[:, :positives], [-1]))
        # One row more: TensorFlow's convolutions have no gradient for a batch without any.
        pooled = tf.pad(pooled, [[0, 1], [0, 0], [0, 0], [0, 0]])
        masks = tf.cast(self.mask_logits(pooled, training=False)[:-1], tf.float32)
        rpn = rpn_losses(rpn_logits, rpn_bbox, batch["rpn_index"], batch["rpn_label"], batch["rpn_delta"])
        return rpn | head_losses(logits, deltas, masks, targets)


def box_head_products(head: keras.Model, pooled: Any) -> tuple[Any, Any]:
    """Class logits [R, K] and deltas [R, K * 4] of the box head, its convolutions computed as matrix products.

    Each of them sees a single position, and TensorFlow's gradient of such a convolution is far slower on a
    processor than that of the product: it was two thirds of a training step.
    """
    x = pooled
    for number in (1, 2):
        convolution, norm = (head.get_layer(f"mrcnn_class_{kind}{number}") for kind in ("conv", "bn"))
        kernel, bias = (tf.cast(v.value, convolution.compute_dtype) for v in (convolution.kernel, convolution.bias))
        x = tf.reshape(tf.cast(x, kernel.dtype), [-1, kernel.shape[0] * kernel.shape[1] * kernel.shape[2]])
        x = x @ tf.reshape(kernel, [x.shape[1], -1]) + bias
        x = tf.nn.relu(norm(x[:, None, None, :], training=False))[:, 0, 0, :]
    return tuple(head.get_layer(name)(x) for name in ("mrcnn_class_logits", "mrcnn_bbox_fc"))


class TrainStep:
    """A compiled training step over all replicas of the current distribution strategy.

    Make it inside the strategy's scope. ``previous`` is the updater of the stage before, see ``Updater``.
    """

    def __init__(
        self,
        model: MaskRCNN,
        canvas: tuple[int, int],
        config: TrainConfig,
        layers: str,
        previous: Updater | None = None,
    ) -> None:
        self.config, self.strategy = config, tf.distribute.get_strategy()
        self.losses = Losses(model, canvas, config)
        self.updater = Updater(model, config, layers, previous)
        # Nothing in it depends on data in Python, and looking for that would be a fifth of the tracing.
        self._function = tf.function(self._run, autograph=False)

    def __call__(self, batch: Batch, rate: float, scale: float = 1.0) -> dict[str, float]:
        """Learn from one batch.

        Args:
            batch: this process's part of the global batch.
            rate: learning rate.
            scale: factor on the loss while the gradient is computed, for float16.

        Returns:
            Each loss, their weighted sum ``loss``, and ``norm``, of the whole global batch.
        """
        self.updater.set_rate(rate)
        values = self._function(batch, tf.constant(scale, tf.float32))
        return {name: float(value) for name, value in values.items()}

    def _run(self, batch: Batch, scale: Any) -> dict[str, Any]:
        values = self.strategy.run(self._replica_step, args=(batch, scale))
        # Every replica holds the value of the whole batch.
        return {name: self.strategy.experimental_local_results(value)[0] for name, value in values.items()}

    def _replica_step(self, batch: Batch, scale: Any) -> dict[str, Any]:
        losses, gradients = self._accumulate(batch, scale)
        replica = tf.distribute.get_replica_context()
        summed = replica.all_reduce(_SUM, losses)
        values = dict(zip((*LOSSES, "loss"), summed, strict=True))
        return values | {"norm": self.updater.apply([g / scale for g in gradients])}

    def _accumulate(self, batch: Batch, scale: Any) -> tuple[list[Any], list[Any]]:
        """Losses and gradients, averaged over the parts of the batch."""
        parts = self.config.accumulate
        if parts == 1:
            return self._gradients(batch, scale)
        split = {name: tf.reshape(v, [parts, -1, *v.shape[1:]]) for name, v in batch.items()}
        losses = [tf.zeros([]) for _ in (*LOSSES, "loss")]
        gradients = [tf.zeros(v.shape) for v in self.updater.trained]

        def add(part: Any, losses: Any, gradients: Any) -> Any:
            more = self._gradients({name: v[part] for name, v in split.items()}, scale)
            added = [
                [a + b / parts for a, b in zip(old, new, strict=True)]
                for old, new in zip((losses, gradients), more, strict=True)
            ]
            return part + 1, *added

        # A loop, not copies in the graph: those would run side by side and need the memory of all.
        _, losses, gradients = tf.while_loop(
            lambda part, *_: part < parts, add, (0, losses, gradients), parallel_iterations=1
        )
        return losses, gradients

    def _gradients(self, batch: Batch, scale: Any) -> tuple[list[Any], list[Any]]:
        """The share of this replica in the losses and in their gradients."""
        replica = tf.distribute.get_replica_context()
        weights = self.config.loss_weights
        with tf.GradientTape() as tape:
            terms = self.losses(batch)
            counts = replica.all_reduce(_SUM, [tf.stop_gradient(terms[name][1]) for name in LOSSES])
            each = [terms[name][0] / tf.maximum(count, 1.0) for name, count in zip(LOSSES, counts, strict=True)]
            loss = tf.add_n([value * weights.get(name, 1.0) for name, value in zip(LOSSES, each, strict=True)])
            scaled = loss * scale
        gradients = tape.gradient(
            scaled, [v.value for v in self.updater.trained], unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return [*each, loss], gradients
