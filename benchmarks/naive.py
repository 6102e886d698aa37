"""The peer: what a user gets from tf2onnx's own handlers for the same Keras graph.

``tf2onnx.convert`` on the whole forward pass. The one change is in the detection layer: tf2onnx has
no handler for the NMS on an overlap matrix, so classes are kept apart by shifting their boxes, as
many ports do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from blu_export.errors import BluError
from blu_export.runtime.base import Runner


def export_naive(model: Any, output: Path, opset: int = 17) -> None:
    """Convert ``model.forward`` with tf2onnx's defaults; the canvas is float32, as Keras users feed it."""
    import tensorflow as tf
    import tf2onnx

    spec = model.spec
    height, width = spec.canvas

    def whole(canvas: Any, window: Any) -> Any:
        return forward(model, canvas, window)

    signature = [tf.TensorSpec([1, height, width, 3], tf.float32), tf.TensorSpec([1, 4], tf.float32)]
    tf2onnx.convert.from_function(tf.function(whole), input_signature=signature, opset=opset, output_path=str(output))


def forward(model: Any, canvas: Any, window: Any) -> Any:
    """Detections [1, N, 6] and masks of every class, of a float32 canvas [1, H, W, 3] and its window [1, 4]."""
    import tensorflow as tf

    from blu_export.model.boxes import clip, decode, normalize_window
    from blu_export.model.roi_align import pyramid_roi_align

    spec = model.spec
    shape = tf.constant(spec.canvas)
    anchors = tf.constant(model.anchors(spec.canvas))
    *pyramid, _, rpn_class, rpn_bbox = model.trunk(model.preprocess(canvas), training=False)
    rois = _propose(rpn_class[0, :, 1], rpn_bbox[0], anchors, spec)
    _, probabilities, deltas = model.box_head(pyramid_roi_align(rois, pyramid, spec.pool_size, shape), training=False)
    class_ids = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
    scores = tf.gather(probabilities, class_ids, batch_dims=1)
    deltas = tf.gather(deltas, class_ids, batch_dims=1)
    boxes = clip(decode(deltas, rois[0], spec.bbox_std_dev), normalize_window(window, shape))
    scores = tf.where((class_ids > 0) & (scores >= spec.detection_min_confidence), scores, -1.0)
    shifted = boxes + 2.0 * tf.cast(class_ids, tf.float32)[:, None]
    keep = tf.image.non_max_suppression(
        shifted, scores, spec.detection_max_instances, spec.detection_nms_threshold, score_threshold=0.0
    )
    rows = tf.concat([boxes, tf.cast(class_ids, tf.float32)[:, None], scores[:, None]], axis=1)
    rows = tf.gather(rows, keep)
    rows = tf.pad(rows, [[0, spec.detection_max_instances - tf.shape(rows)[0]], [0, 0]])[None]
    pooled = pyramid_roi_align(rows[..., :4], pyramid, spec.mask_pool_size, shape)
    return rows, model.mask_head(pooled, training=False)


def _propose(scores: Any, deltas: Any, anchors: Any, spec: Any) -> Any:
    """``model.proposals.propose`` for one photo, whose loop over a batch no converter but tf2onnx takes."""
    import tensorflow as tf

    from blu_export.model.boxes import clip, decode

    scores, index = tf.math.top_k(scores, min(spec.pre_nms_limit, int(anchors.shape[0])), sorted=True)
    boxes = decode(tf.gather(deltas, index), tf.gather(anchors, index), spec.rpn_bbox_std_dev)
    boxes = clip(boxes, tf.constant([0.0, 0.0, 1.0, 1.0]))
    keep = tf.image.non_max_suppression(boxes, scores, spec.post_nms_rois_inference, spec.rpn_nms_threshold)
    rois = tf.gather(boxes, keep)
    rois = tf.pad(rois, [[0, spec.post_nms_rois_inference - tf.shape(rois)[0]], [0, 0]])
    return tf.ensure_shape(rois, [spec.post_nms_rois_inference, 4])[None]


class NaiveRunner(Runner):
    """Runs the naive file in ONNX Runtime: float canvas in, masks of every class out."""

    runtime = "onnxruntime, naive conversion"
    device = "CPU"
    precision = "float32"

    def __init__(self, path: Path, spec: Any, threads: int) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")  # as in ours
        self.spec = spec
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``; batch 1 only."""
        if len(canvas) > 1:
            raise BluError("The naive conversion takes one photo at a time.")
        detections, masks = self.session.run(
            None, dict(zip(self.names, (canvas.astype(np.float32), window), strict=True))
        )
        class_ids = detections[0, :, 4].astype(np.int64)
        return detections, masks[np.arange(len(class_ids)), :, :, class_ids][None]
