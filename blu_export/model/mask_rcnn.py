"""MaskRCNN: the Keras model, and the reference that every other runtime is compared with."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from blu_export.anchors import pyramid_anchors
from blu_export.model.boxes import normalize_window
from blu_export.model.detection import select_detections
from blu_export.model.heads import build_box_head, build_mask_head
from blu_export.model.proposals import propose
from blu_export.model.roi_align import pyramid_roi_align
from blu_export.model.trunk import PYRAMID_LEVELS, build_trunk
from blu_export.spec import ModelSpec


@keras.saving.register_keras_serializable(package="blu_export")
class MaskRCNN(keras.Model):
    """Mask R-CNN (He et al. 2017) with the layer names of Matterport's implementation.

    The learned layers are three functional models, ``trunk``, ``box_head`` and ``mask_head``; all
    else is box arithmetic. Weights are random until a file is loaded (``model/weights.py``).
    """

    def __init__(self, spec: ModelSpec, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.spec = spec
        self.trunk = build_trunk(spec)
        self.box_head = build_box_head(spec)
        self.mask_head = build_mask_head(spec)
        self.built = True
        self._anchors = lru_cache(maxsize=32)(lambda height, width: pyramid_anchors(spec, (height, width)))
        self._detect = tf.function(
            self.forward,
            input_signature=[
                tf.TensorSpec([None, *(spec.canvas or (None, None)), spec.image_channel_count], tf.uint8),
                tf.TensorSpec([None, 4], tf.float32),
                tf.TensorSpec([None, 4], tf.float32),
            ],
        )

    def learned_layers(self) -> dict[str, keras.layers.Layer]:
        """Every layer that has weights, by its name."""
        parts = (self.trunk, self.box_head, self.mask_head)
        return {layer.name: layer for part in parts for layer in part.layers if layer.weights}

    def anchors(self, canvas_shape: tuple[int, int]) -> NDArray[np.float32]:
        """Normalized anchors [A, 4] of a canvas (height, width); cached."""
        found: NDArray[np.float32] = self._anchors(*canvas_shape)
        return found

    def preprocess(self, canvas: Any) -> Any:
        """Canvas uint8 [B, H, W, 3] to the trunk's float32 input."""
        return tf.cast(canvas, tf.float32) - tf.constant(self.spec.mean_pixel, tf.float32)

    def detect(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[str, Any]]:
        """Run the reference on a batch; see ``Runner.run`` for the arguments and the first two results.

        Returns:
            detections, masks, and the tensors named in ``contract.STAGES``.
        """
        stages = self._detect(canvas, window, self.anchors((canvas.shape[1], canvas.shape[2])))
        return stages["detections"].numpy(), stages["masks"].numpy(), stages

    def forward(self, canvas: Any, window: Any, anchors: Any) -> dict[str, Any]:
        """The whole forward pass as TensorFlow operations; returns the tensors named in ``contract.STAGES``."""
        shape = tf.shape(canvas)[1:3]
        *pyramid, _, rpn_class, rpn_bbox = self.trunk(self.preprocess(canvas), training=False)
        rois = propose(rpn_class[..., 1], rpn_bbox, anchors, self.spec)
        return dict(zip(PYRAMID_LEVELS, pyramid, strict=False)) | {
            "rpn_class": rpn_class,
            "rpn_bbox": rpn_bbox,
            "rois": rois,
            **self.detect_in(rois, pyramid, window, shape),
        }

    def detect_in(self, rois: Any, pyramid: list[Any], window: Any, shape: Any) -> dict[str, Any]:
        """What follows from the proposals: the tensors of ``contract.STAGES`` after ``rois``.

        Args:
            rois: float32 [B, R, 4], normalized.
            pyramid: P2..P5.
            window: float32 [B, 4], pixels.
            shape: int [2], (height, width) of the canvas.
        """
        pooled = pyramid_roi_align(rois, pyramid, self.spec.pool_size, shape)
        _, probabilities, deltas = self.box_head(pooled, training=False)
        rows = tf.shape(rois)[:2]
        probabilities = tf.reshape(probabilities, [rows[0], rows[1], self.spec.num_classes])
        deltas = tf.reshape(deltas, [rows[0], rows[1], self.spec.num_classes, 4])
        detections = select_detections(rois, probabilities, deltas, normalize_window(window, shape), self.spec)
        return {
            "mrcnn_class": probabilities,
            "mrcnn_bbox": deltas,
            "detections": detections,
            "masks": self.masks_of(detections, pyramid, shape),
        }

    def masks_of(self, detections: Any, pyramid: list[Any], shape: Any) -> Any:
        """Mask of each detection's own class: float32 [B, N, h, w], zero for unused rows."""
        batch, count = tf.shape(detections)[0], self.spec.detection_max_instances
        pooled = pyramid_roi_align(detections[..., :4], pyramid, self.spec.mask_pool_size, shape)
        every_class = self.mask_head(pooled, training=False)
        class_ids = tf.cast(tf.reshape(detections[..., 4], [-1]), tf.int32)
        masks = tf.gather(tf.transpose(every_class, [0, 3, 1, 2]), class_ids, batch_dims=1)
        masks = tf.where(class_ids[:, None, None] > 0, masks, 0.0)
        return tf.reshape(masks, [batch, count, *self.spec.mask_shape])

    def call(self, inputs: tuple[Any, Any, Any], training: bool = False) -> dict[str, Any]:
        """``forward`` on (canvas, window, anchors)."""
        return self.forward(*inputs)

    def get_config(self) -> dict[str, Any]:
        """The spec as JSON: all that is needed to build the model again."""
        return {"spec": self.spec.to_json()}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MaskRCNN:
        """Build the model that ``get_config`` described."""
        return cls(ModelSpec.from_json(config["spec"], "model config"))
