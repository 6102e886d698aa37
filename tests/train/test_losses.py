"""Losses against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest


def value(terms: dict, name: str) -> float:
    total, count = terms[name]
    return float(total) / float(count)


def test_smooth_l1() -> None:
    import tensorflow as tf

    from blu_export.train.losses import smooth_l1

    distance = smooth_l1(tf.zeros([5]), tf.constant([0.0, 0.5, -0.5, 1.0, -3.0]))
    np.testing.assert_allclose(distance, [0, 0.125, 0.125, 0.5, 2.5])


def test_rpn_by_hand() -> None:
    import tensorflow as tf

    from blu_export.train.losses import rpn_losses

    logits = tf.constant([[[0.0, 0.0], [0.0, math.log(3)], [9.0, 9.0], [math.log(4), 0.0]]])
    deltas = tf.constant([[[0.0] * 4, [0.5, 0, 0, 2.0], [7.0] * 4, [7.0] * 4]])
    index, label = tf.constant([[1, 3, 0]]), tf.constant([[1, 0, -1]])
    target = tf.zeros([1, 3, 4])
    terms = rpn_losses(logits, deltas, index, label, target)
    # Anchor 1 is positive with probability 3/4, anchor 3 negative with 4/5; the third row is unused.
    assert value(terms, "rpn_class") == pytest.approx((-math.log(0.75) - math.log(0.8)) / 2)
    assert value(terms, "rpn_bbox") == pytest.approx((0.125 + 1.5) / 4)


def test_heads_by_hand() -> None:
    import tensorflow as tf

    from blu_export.train.losses import head_losses
    from blu_export.train.targets import RoiTargets

    targets = RoiTargets(
        rois=tf.zeros([1, 4, 4]),
        valid=tf.constant([[True, False, True, False]]),  # two rows of positives, two of negatives
        class_ids=tf.constant([[2, 0, 0, 0]]),
        deltas=tf.constant([[[1.0, 0, 0, 0], [9.0] * 4]]),
        masks=tf.constant([[[[1.0, 0.0]], [[1.0, 1.0]]]]),
    )
    logits = tf.constant([[[0.0, 0.0, math.log(2)], [9.0, 0, 0], [math.log(6), math.log(2), 0.0], [0, 9.0, 0]]])
    deltas = np.full((1, 4, 3, 4), 50.0, np.float32)
    deltas[0, 0, 2] = [0.5, 0, 0, 0]  # only the class of the object counts
    masks = np.full((1, 1, 2, 3), 50.0, np.float32)
    masks[0, 0, :, 2] = [0.0, math.log(3)]
    terms = head_losses(logits, tf.constant(deltas), tf.constant(masks), targets)
    assert value(terms, "mrcnn_class") == pytest.approx((math.log(2) - math.log(6 / 9)) / 2, rel=1e-5)
    assert value(terms, "mrcnn_bbox") == pytest.approx(0.125 / 4)
    # Pixel 1: target 1, probability 0.5; pixel 2: target 0, probability 0.75.
    assert value(terms, "mrcnn_mask") == pytest.approx((math.log(2) + math.log(4)) / 2, rel=1e-5)


def test_no_positives_is_no_loss() -> None:
    import tensorflow as tf

    from blu_export.train.losses import head_losses
    from blu_export.train.targets import RoiTargets

    targets = RoiTargets(
        tf.zeros([1, 2, 4]),
        tf.zeros([1, 2], bool),
        tf.zeros([1, 2], tf.int32),
        tf.zeros([1, 1, 4]),
        tf.zeros([1, 1, 4, 4]),
    )
    terms = head_losses(tf.zeros([1, 2, 3]), tf.zeros([1, 2, 3, 4]), tf.zeros([0, 4, 4, 3]), targets)
    assert all(float(total) == 0.0 and float(count) == 0.0 for total, count in terms.values())
