"""Targets against cases computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import pytest

from blu_export.boxes import decode, iou
from blu_export.spec import ModelSpec
from blu_export.train.config import TargetConfig

if TYPE_CHECKING:
    from blu_export.train.targets import AnchorTargets

SPEC = ModelSpec(
    class_names=("BG", "a", "b"),
    rpn_anchor_scales=(16, 32, 64, 128, 256),
    rpn_anchor_ratios=(1.0,),
    mask_pool_size=2,
    mask_shape=(4, 4),
)
CONFIG = TargetConfig(rpn_anchors_per_image=8, proposals=6, rois_per_image=6, roi_positive_share=0.34)


def boxes(*rows: tuple[float, float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).reshape(-1, 4)


class TestAnchors:
    """Canvas 64 x 64 with one ratio: 256 + 64 + 16 + 4 + 1 anchors."""

    @cached_property
    def targets(self) -> AnchorTargets:
        from blu_export.train.targets import AnchorTargets

        return AnchorTargets(SPEC, (64, 64), CONFIG)

    def test_matches_by_hand(self) -> None:
        # Exactly the 32-pixel anchor at cell (2, 3) of P3: center (16, 24).
        box = boxes((0, 8, 32, 40))
        positive, matched, negative = self.targets.match(box, boxes())
        exact = 256 + 2 * 8 + 3
        assert positive[exact]
        assert matched[exact] == 0
        # A shift by one cell of 8 pixels: IoU 24/40 = 0.6, neither positive nor negative.
        assert not positive[exact + 1]
        assert not negative[exact + 1]
        # Two cells away: 16/48 = 0.33 neither; three: 8/56 = 0.14 negative.
        assert not negative[exact + 2]
        assert negative[exact + 3]
        assert positive.sum() == 1

    def test_the_best_anchor_is_positive_however_far(self) -> None:
        small = boxes((30, 30, 34, 34))
        positive, _, negative = self.targets.match(small, boxes())
        overlaps = iou(self.targets.anchors, small)[:, 0]
        assert overlaps.max() < 0.3
        np.testing.assert_array_equal(positive, overlaps == overlaps.max())
        assert not (positive & negative).any()

    def test_crowds_are_neither(self) -> None:
        crowd = boxes((0, 0, 32, 64))
        positive, _, negative = self.targets.match(boxes(), crowd)
        assert not positive.any()
        touching = iou(self.targets.anchors, crowd)[:, 0] >= 0.001
        np.testing.assert_array_equal(negative, ~touching)

    def test_sampled_rows(self) -> None:
        objects = boxes((0, 8, 32, 40), (32, 32, 48, 48), (40, 0, 56, 16))
        rows = self.targets(objects, np.array([1, 2, -1], np.int32), np.random.default_rng(0))
        positive, matched, negative = self.targets.match(objects[:2], objects[2:])
        picked = rows["rpn_index"][rows["rpn_label"] == 1]
        assert set(picked) == set(np.flatnonzero(positive))
        assert negative[rows["rpn_index"][rows["rpn_label"] == 0]].all()
        assert (rows["rpn_label"] >= 0).all()
        moved = decode(rows["rpn_delta"][: len(picked)], self.targets.anchors[picked], SPEC.rpn_bbox_std_dev)
        np.testing.assert_allclose(moved, objects[matched[picked]], atol=1e-3)

    def test_positives_are_at_most_half(self) -> None:
        grid = np.stack(np.meshgrid(np.arange(0, 48, 12), np.arange(0, 48, 12)), axis=-1).reshape(-1, 2)
        objects = np.concatenate([grid, grid + 16], axis=1).astype(np.float32)
        rows = self.targets(objects, np.ones(len(objects), np.int32), np.random.default_rng(0))
        assert (rows["rpn_label"] == 1).sum() == 4
        assert (rows["rpn_label"] == 0).sum() == 4

    def test_photo_without_objects_has_negatives_only(self) -> None:
        rows = self.targets(boxes(), np.zeros(0, np.int32), np.random.default_rng(0))
        assert (rows["rpn_label"] == 0).all()
        assert not rows["rpn_delta"].any()


class TestRois:
    """Two photos: one with an object of class 2 and a crowd, one without anything."""

    gt_boxes = np.array([[[0.0, 0.0, 0.5, 0.5], [0.6, 0.6, 1.0, 1.0]], [[0] * 4] * 2], np.float32)
    gt_class_ids = np.array([[2, -1], [0, 0]], np.int32)
    gt_masks = np.zeros((2, 2, 8, 8), bool)
    proposals = np.array(
        [
            [
                [0.0, 0.0, 0.5, 0.5],  # IoU 1: positive
                [0.0, 0.0, 0.25, 0.5],  # IoU 0.5: positive
                [0.0, 0.0, 0.2, 0.5],  # IoU 0.4: negative
                [0.7, 0.7, 0.9, 0.9],  # inside the crowd: neither
                [0.0, 0.6, 0.2, 0.8],  # negative
                [0.0, 0.0, 0.0, 0.0],  # unused
            ],
            [[0.1, 0.1, 0.3, 0.3]] + [[0.0] * 4] * 5,
        ],
        np.float32,
    )
    noise = np.tile(np.linspace(0.9, 0.1, 6, dtype=np.float32), (2, 1))

    def sample(self, config: TargetConfig = CONFIG) -> object:
        import tensorflow as tf

        from blu_export.train.targets import roi_targets

        arrays = (self.proposals, self.gt_boxes, self.gt_class_ids, self.gt_masks, self.noise)
        return roi_targets(*map(tf.constant, arrays), SPEC, config)

    def test_by_hand(self) -> None:
        targets = self.sample()
        # Two positives at a share of 0.34 allow int(2 / 0.34) - 2 = 3 negatives; there are two.
        assert targets.valid.numpy().tolist() == [[True, True, True, True, False, False], [False] * 6]
        np.testing.assert_array_equal(targets.rois[0, :4], self.proposals[0, [0, 1, 2, 4]])
        assert targets.class_ids[0].numpy().tolist() == [2, 2, 0, 0, 0, 0]
        # The second positive is half as high as its object: center 0.125 of 0.25 too high, log 2.
        np.testing.assert_allclose(targets.deltas[0, 0], [0, 0, 0, 0], atol=1e-6)
        np.testing.assert_allclose(targets.deltas[0, 1], [0.5 / 0.1, 0, math.log(2) / 0.2, 0], atol=1e-5)

    def test_noise_decides_which(self) -> None:
        import tensorflow as tf

        from blu_export.train.targets import roi_targets

        few = replace(CONFIG, rois_per_image=3)  # one positive, two negatives
        assert np.array_equal(self.sample(few).rois[0, 0], self.proposals[0, 0])
        self_noise = self.noise[:, ::-1].copy()
        targets = roi_targets(
            *map(tf.constant, (self.proposals, self.gt_boxes, self.gt_class_ids, self.gt_masks, self_noise)), SPEC, few
        )
        assert np.array_equal(targets.rois[0, 0], self.proposals[0, 1])

    def test_negatives_can_fill_their_rows(self) -> None:
        targets = self.sample(replace(CONFIG, fill_negatives=True, roi_positive_share=0.5))
        # A share of a half would allow two negatives for two positives, and none for the photo without objects.
        assert targets.valid.numpy().tolist() == [
            [True, True, False, True, True, False],
            [False] * 3 + [True] + [False] * 2,
        ]
        np.testing.assert_array_equal(targets.rois[0, 3:5], self.proposals[0, [2, 4]])
        np.testing.assert_array_equal(targets.rois[1, 3], self.proposals[1, 0])
        assert not targets.class_ids[1].numpy().any()

    def test_ground_truth_can_be_proposed(self) -> None:
        import tensorflow as tf

        from blu_export.train.targets import roi_targets

        config = replace(CONFIG, propose_ground_truth=True, rois_per_image=9)
        noise = np.tile(np.linspace(0.9, 0.1, 8, dtype=np.float32), (2, 1))
        arrays = (np.zeros_like(self.proposals), self.gt_boxes, self.gt_class_ids, self.gt_masks, noise)
        targets = roi_targets(*map(tf.constant, arrays), SPEC, config)
        assert targets.valid.numpy().sum() == 1  # the object, not the crowd
        np.testing.assert_array_equal(targets.rois[0, 0], self.gt_boxes[0, 0])


def test_mask_target_is_what_the_roi_sees() -> None:
    # The left half of the object; a ROI that is its upper left quarter sees 1 everywhere, the upper
    # right quarter 0, the whole box both.
    import tensorflow as tf

    from blu_export.train.targets import mask_targets

    gt_mask = np.zeros((1, 1, 56, 56), bool)
    gt_mask[..., :28] = True
    box = np.array([0.2, 0.2, 0.6, 0.6], np.float32)
    rois = np.array([[[0.2, 0.2, 0.4, 0.39], [0.2, 0.41, 0.4, 0.6], [0.2, 0.2, 0.6, 0.6]]], np.float32)
    masks = mask_targets(
        tf.constant(rois),
        tf.constant(np.tile(box, (1, 3, 1))),
        tf.zeros([1, 3], tf.int32),
        tf.constant(gt_mask),
        (4, 4),
    )
    np.testing.assert_array_equal(masks[0, 0], np.ones((4, 4)))
    np.testing.assert_array_equal(masks[0, 1], np.zeros((4, 4)))
    np.testing.assert_array_equal(masks[0, 2], [[1, 1, 0, 0]] * 4)


def test_share_of_positives() -> None:
    assert TargetConfig().positive_rois == 66
    assert pytest.approx(TargetConfig().rpn_anchors_per_image) == 256
