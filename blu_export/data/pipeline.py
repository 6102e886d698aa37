"""The input pipeline: numbered training samples, made in parallel, batched by ``tf.data``.

Sample number k is a function of (seed, k) alone: its photo, its augmentation, its sampled anchors.
A run that stops after n samples and starts again at n therefore sees what it would have seen, and
several workers can each make their part of one global batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blu_export.data.augment import (
    AugmentConfig,
    Canvas,
    Photo,
    jitter_color,
    mask_box,
    mini_masks,
    paste,
    place,
    random_affine,
    visible_objects,
)
from blu_export.data.dataset import CUTOUT, Dataset
from blu_export.data.photos import MAX_UNREADABLE, PhotoStore
from blu_export.data.scenes import cutout_box, paste_person, person_affine, without_cutouts
from blu_export.errors import UsageError
from blu_export.image import resize_scale
from blu_export.spec import ModelSpec

MAX_PERSONS = 3
PERSONS_END = 0.6
"""Probability that a scene's next person is its last."""

Sample = dict[str, NDArray[Any]]
Encode = Callable[[NDArray[np.float32], NDArray[np.int32], np.random.Generator], Sample]
"""Turns boxes float32 [N, 4] (pixels of the canvas) and class ids int32 [N] (negative: crowd) into
more entries of a sample: the targets of the RPN."""


@dataclass(frozen=True)
class SampleConfig:
    """What a training sample looks like."""

    canvas: tuple[int, int]
    """(height, width) in pixels, multiples of 64. A crop: need not be the canvas of inference."""
    max_gt_instances: int = 100
    """Objects kept per sample; of more, a random choice."""
    mini_mask_shape: tuple[int, int] = (56, 56)
    """Masks are kept cropped to their boxes at this size, as the original does to save memory."""
    seed: int = 0
    balance: float = 0.0
    """Photos with a class that fewer than this share of the photos show are drawn more often, by
    sqrt(balance / share) (repeat-factor sampling, Gupta et al. 2019); 0: all alike."""
    cache_bytes: int = 4 << 30
    """Memory for decoded photos; beyond it they are decoded each time."""
    unreadable: float = MAX_UNREADABLE
    """Share of the photos that may be unreadable."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class SampleMaker:
    """Makes training sample k of a data set.

    Args:
        dataset: the photos.
        spec: gives the scale at which inference would see a photo.
        config: canvas, augmentation, seed.
        encode: adds targets to the sample.
        backgrounds: photos for ``augment.scenes`` and ``augment.empty``; crowds on them are ignored.

    Raises:
        UsageError: scenes or empty photos are asked for without backgrounds, or scenes without cut-outs.

    Attributes:
        failure: why a sample could not be made, in ``batches``; the samples of a run that has one are worth nothing.
    """

    failure: Exception | None = None

    def __init__(
        self,
        dataset: Dataset,
        spec: ModelSpec,
        config: SampleConfig,
        encode: Encode,
        backgrounds: Dataset | None = None,
    ) -> None:
        self.dataset, self.spec, self.config, self.encode = dataset, spec, config, encode
        self.photos = self._store(dataset)
        self.backgrounds = self._store(backgrounds) if backgrounds else None
        self.persons = dataset.cutouts()
        if config.augment.scenes + config.augment.empty > 0 and not backgrounds:
            raise UsageError("There are no backgrounds for scenes and empty photos.", "Set data.backgrounds.")
        if config.augment.scenes > 0 and not self.persons:
            raise UsageError("There are no cut-outs of persons to make scenes of.", "Set data.cutouts.")
        self._quota = np.cumsum(repeat_factors(dataset, config.balance))
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __call__(self, number: int) -> Sample:
        """Sample ``number``: ``image`` uint8 [H, W, 3], ``gt_boxes`` float32 [G, 4] (normalized),
        ``gt_class_ids`` int32 [G] (negative: crowd; 0: unused row), ``gt_masks`` bool [G, h, w],
        ``replaced`` bool (its photo cannot be read: it shows another), and what ``encode`` adds.

        Raises:
            DatasetError: too many photos cannot be read.
        """
        config = self.config
        passes, position = divmod(int(number), len(self.dataset))
        rng = np.random.default_rng([config.seed, int(number)])
        order = self._order(passes)
        index, augment = int(order[position]), config.augment
        if augment.scenes + augment.empty > 0 and (share := rng.random()) < augment.scenes + augment.empty:
            canvas = self._scene(index, rng) if share < augment.scenes else self._background(rng)
        else:
            canvas = self._draw(self.photos[index], rng)
            if rng.random() < augment.copy_paste:
                other = self._draw(self.photos[int(order[rng.integers(len(order))])], rng)
                canvas = paste(canvas, other, (rng.random(len(other.masks)) < 0.5) & ~other.iscrowd)
        sample = self._finish(canvas, jitter_color(canvas.image, config.augment, rng), rng)
        return sample | {"replaced": np.array(index in self.photos.unreadable)}

    def _store(self, dataset: Dataset) -> PhotoStore:
        config = self.config
        return PhotoStore(dataset, 2 * self.spec.image_max_dim, config.cache_bytes, config.unreadable)

    def _shuffled(self, passes: int) -> NDArray[np.int64]:
        """The photos of one pass: as many as there are, each as often as its share of the quota."""
        rng = np.random.default_rng([self.config.seed, passes, 1])
        count = len(self.dataset)
        marks = (rng.random() + np.arange(count)) * (self._quota[-1] / count)
        return rng.permutation(np.minimum(np.searchsorted(self._quota, marks, side="right"), count - 1))

    def _draw(self, photo: Photo, rng: np.random.Generator) -> Canvas:
        height, width = photo.image.shape[:2]
        scale = resize_scale(height, width, self.spec)
        affine = random_affine((height, width), self.config.canvas, scale, self.config.augment, rng)
        # Before masks as large as the canvas are made: hundreds of those take gigabytes.
        shown = visible_objects(photo, affine, self.config.canvas)
        if len(shown) > self.config.max_gt_instances:
            photo = photo.only(np.sort(rng.permutation(shown)[: self.config.max_gt_instances]))
        return without_cutouts(place(photo, affine, self.config.canvas))

    def _background(self, rng: np.random.Generator) -> Canvas:
        assert self.backgrounds is not None
        return self._draw(self.backgrounds[int(rng.integers(len(self.backgrounds)))], rng)

    def _scene(self, index: int, rng: np.random.Generator) -> Canvas:
        """A background with one to MAX_PERSONS persons; the first is that of photo ``index``, if it has one."""
        canvas, augment = self._background(rng), self.config.augment
        for number in range(min(MAX_PERSONS, int(rng.geometric(PERSONS_END)))):
            photo = self.photos[index]
            if number or CUTOUT not in photo.class_ids:
                photo = self.photos[self.persons[int(rng.integers(len(self.persons)))]]
            if CUTOUT not in photo.class_ids:  # it stands for one that cannot be read
                continue
            affine = person_affine(cutout_box(photo), self.config.canvas, augment, rng)
            person = place(photo, affine, self.config.canvas)
            person = replace(person, image=jitter_color(person.image, augment, rng))
            canvas = paste_person(canvas, person, rng)
        return canvas

    def _finish(self, canvas: Canvas, image: NDArray[np.uint8], rng: np.random.Generator) -> Sample:
        config, (height, width) = self.config, self.config.canvas
        chosen = np.sort(rng.permutation(len(canvas.masks))[: config.max_gt_instances])
        masks = canvas.masks[chosen]
        boxes = np.array([mask_box(mask) for mask in masks], np.int32).reshape(-1, 4)
        ignored = canvas.iscrowd | (canvas.masks.sum(axis=(1, 2)) < config.augment.smallest)
        class_ids = np.where(ignored, -canvas.class_ids, canvas.class_ids)[chosen].astype(np.int32)
        used, rows = len(chosen), config.max_gt_instances
        sample: Sample = {
            "image": image,
            "gt_boxes": np.zeros((rows, 4), np.float32),
            "gt_class_ids": np.zeros(rows, np.int32),
            "gt_masks": np.zeros((rows, *config.mini_mask_shape), bool),
        }
        sample["gt_boxes"][:used] = (boxes - [0, 0, 1, 1]) / [height - 1, width - 1, height - 1, width - 1]
        sample["gt_class_ids"][:used] = class_ids
        sample["gt_masks"][:used] = mini_masks(masks, boxes, config.mini_mask_shape)
        return sample | self.encode(boxes.astype(np.float32), class_ids, rng)


def repeat_factors(dataset: Dataset, balance: float) -> NDArray[np.float64]:
    """How often each photo is drawn, relative to 1: float64 [len(dataset)]; see ``SampleConfig.balance``."""
    shown = np.zeros((len(dataset), len(dataset.class_names)), bool)
    for row, record in zip(shown, dataset.records, strict=True):
        row[[annotation.category for annotation in record.annotations if annotation.category != CUTOUT]] = True
    share = np.maximum(shown.mean(axis=0), 1 / len(dataset))
    return np.where(shown, np.maximum(1.0, np.sqrt(balance / share)), 1.0).max(axis=1)


def batches(
    make: SampleMaker,
    global_batch: int,
    first_step: int,
    steps: int,
    *,
    workers: int = 1,
    worker: int = 0,
    parallel: int = 2,
) -> Any:
    """A ``tf.data.Dataset`` of ``steps`` batches, from step ``first_step`` of the run.

    Where a sample cannot be made, ``make.failure`` says why and the batch is to be thrown away: an error inside
    ``tf.data`` would reach the caller as TensorFlow's, without its type.

    Args:
        make: makes the samples.
        global_batch: photos per step over all workers; divisible by ``workers``.
        workers: processes or devices that share each batch.
        worker: which part of it this data set gives.
        parallel: samples made at a time (Python threads; OpenCV and NumPy release the lock).
    """
    import tensorflow as tf

    local = global_batch // workers
    example = make(0)
    names = list(example)
    types = [tf.as_dtype(example[name].dtype) for name in names]

    def values_of(number: Any) -> list[NDArray[Any]]:
        try:
            sample = make(number)
        except Exception as error:  # raised where the batch is taken
            make.failure = make.failure or error
            sample = example
        return [sample[name] for name in names]

    def row(position: Any) -> dict[str, Any]:
        number = (position // local) * global_batch + worker * local + position % local
        values = tf.numpy_function(values_of, [number], types, stateful=False)
        return {name: tf.ensure_shape(value, example[name].shape) for name, value in zip(names, values, strict=True)}

    positions = tf.data.Dataset.range(first_step * local, (first_step + steps) * local)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    rows = positions.map(row, num_parallel_calls=parallel, deterministic=True)
    return rows.batch(local, drop_remainder=True).prefetch(2).with_options(options)
