"""Feed: the batches of training, shared out over devices and workers, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from blu_export.data.pipeline import SampleMaker, batches
from blu_export.errors import DatasetError, UsageError
from blu_export.train.config import TrainConfig


def check_batch(config: TrainConfig, strategy: tf.distribute.Strategy) -> None:
    """Refuse a batch that cannot be shared out.

    Raises:
        UsageError: it is not a multiple of devices times accumulate.
    """
    parts = strategy.num_replicas_in_sync * config.accumulate
    if not config.batch or config.batch % parts:
        raise UsageError(
            f"A batch of {config.batch} photos cannot be cut into {parts} parts (devices times accumulate).",
            f"Set --batch to a multiple of {parts}.",
        )


class Feed:
    """Batches of samples.

    Args:
        make: makes a sample by its number.
        config: of training.
        steps: of an epoch.
        strategy: spreads a batch over devices or machines.
    """

    def __init__(self, make: SampleMaker, config: TrainConfig, steps: int, strategy: tf.distribute.Strategy) -> None:
        self.make, self.config, self.steps, self.strategy = make, config, steps, strategy
        self._without_objects = 0  # samples since the start or the last one with objects

    def begin(self, epoch: int) -> Iterator[Any]:
        """Batches from the first of an epoch to the end of training."""
        first, count = epoch * self.steps, (self.config.total_epochs - epoch) * self.steps
        config, parallel = self.config, self.config.workers
        if self.strategy.num_replicas_in_sync == 1:
            return iter(batches(self.make, config.batch, first, count, parallel=parallel))

        def part(context: tf.distribute.InputContext) -> Any:
            workers, worker = context.num_input_pipelines, context.input_pipeline_id
            rows = batches(self.make, config.batch, first, count, workers=workers, worker=worker, parallel=parallel)
            local = context.get_per_replica_batch_size(config.batch)
            return rows.unbatch().batch(local, drop_remainder=True)

        return iter(self.strategy.distribute_datasets_from_function(part))

    def next(self, data: Iterator[Any]) -> Any:
        """The next batch.

        Raises:
            DatasetError: too many photos, or all of this batch, cannot be read; or there is nothing to learn from.
        """
        batch = next(data)
        failure = self.make.failure
        if failure is not None:
            raise failure
        replaced, class_ids = (self._local(batch, name) for name in ("replaced", "gt_class_ids"))
        if self.config.batch > 1 and replaced.all():
            reasons = list(self.make.photos.unreadable.reasons.values())
            raise DatasetError(
                f"None of the {len(replaced)} photos of a batch can be read. {reasons[-1]}",
                "Check the disk or the connection, then continue with --resume.",
            )
        self._without_objects = 0 if (class_ids > 0).any() else self._without_objects + len(class_ids)
        if self._without_objects >= 2 * len(self.make.dataset):
            raise DatasetError(
                f"There is nothing to learn from {self.make.dataset.name}: no object was seen in two passes.",
                "Objects of a few pixels are left out: set a larger --canvas or model.image_max_dim.",
            )
        del batch["replaced"]
        return batch

    def _local(self, batch: Any, name: str) -> Any:
        return np.concatenate([part.numpy() for part in self.strategy.experimental_local_results(batch[name])])
