"""The training loop: epochs, validation, checkpoints, early stop; and going on after an interruption.

The run folder::

    config.toml               data, model and training settings, as run
    checkpoints/epoch-N.npz   all state after epoch N; the newest few
    best.h5                   weights with the best validation mask AP (moving average, if one is kept)
    final.h5                  weights after the last epoch, likewise
    history.csv               one row per epoch: losses, learning rate, AP, seconds
    curves.png                the same as plots
    pictures/epoch-N.jpg      predictions on a few validation photos
    tensorboard/              the same for TensorBoard, losses also every few steps
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from blu_export.data.dataset import Dataset
from blu_export.data.pipeline import SampleConfig, SampleMaker, batches
from blu_export.errors import CheckFailedError, UsageError
from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.spec import ModelSpec
from blu_export.train.checkpoint import checkpoint_path, latest_checkpoint, load_checkpoint, save_checkpoint
from blu_export.train.config import LOSSES, TrainConfig
from blu_export.train.distribute import check_same_epoch
from blu_export.train.run_folder import RunFolder
from blu_export.train.schedule import LossScale, cosine
from blu_export.train.step import TrainStep
from blu_export.train.targets import AnchorTargets

BEST = "mask_ap"
"""The entry of a validation's result by which the best weights are chosen."""

MAX_WARMUP = 0.2
"""Largest share of a run that is warm-up: a small data set has few steps."""

Row = dict[str, float]
Validate = Callable[[MaskRCNN, Path | None], Row]
"""Measures a model: returns ``mask_ap`` and whatever else should be in the history, and draws
predictions to the path, if there is one. With several workers each of them calls it."""


@dataclass
class Progress:
    """Where a run stands; all of it is in its checkpoints."""

    epoch: int = 0
    """Epochs completed."""
    best: float = -1.0
    stale: int = 0
    """Validations since the best."""
    scale: float = 1.0
    """See LossScale."""
    scale_age: int = 0


class Trainer:
    """Trains ``model`` on ``dataset``.

    Args:
        spec: the model as it will be used; its canvas is that of validation.
        model: the model to train, any canvas (``image_resize_mode`` ``none``), with its starting weights;
            made inside the scope of ``strategy``.
        dataset: the training photos.
        config: how.
        folder: the run folder; None writes nothing (workers other than the first).
        validate: measures a float32 model of ``spec``; None: never.
        strategy: spreads the batch over devices or machines.
        backgrounds: see ``SampleMaker``.
    """

    def __init__(
        self,
        spec: ModelSpec,
        model: MaskRCNN,
        dataset: Dataset,
        config: TrainConfig,
        folder: RunFolder | None = None,
        validate: Validate | None = None,
        strategy: tf.distribute.Strategy | None = None,
        backgrounds: Dataset | None = None,
    ) -> None:
        self.spec, self.model, self.config = spec, model, config
        self.folder, self.validate = folder, validate
        self.strategy = strategy or tf.distribute.get_strategy()
        self.canvas = training_canvas(spec, config)
        self._check_batch()
        self.steps = config.steps_per_epoch or max(1, len(dataset) // config.batch)
        self.total_steps = self.steps * config.total_epochs
        self.warmup_steps = min(config.warmup_steps, int(MAX_WARMUP * self.total_steps))
        self.make = sample_maker(dataset, spec, config, backgrounds)
        self.progress = Progress()
        self.history: list[Row] = []
        self.step = self._stage_step(0)

    def resume(self, folder: Path) -> bool:
        """Take up the newest checkpoint under ``folder``; False where there is none.

        Raises:
            ModelFileError: it does not fit this run.
            UsageError: other workers are after another epoch.
        """
        path = latest_checkpoint(folder)
        epochs = int(path.stem.rpartition("-")[2]) if path else 0
        check_same_epoch(self.strategy, epochs)  # before variables are made, for which all workers wait
        if path is None:
            return False
        self.step = self._stage_step(max(0, epochs - 1))
        state = load_checkpoint(path, self.model, self.step.updater)
        self.progress, self.history = Progress(**state["progress"]), state["history"]
        return True

    def run(
        self,
        on_epoch: Callable[[Row], None] = lambda row: None,
        on_step: Callable[[int, float], None] = lambda number, loss: None,
    ) -> list[Row]:
        """Train to the end, or until validation no longer gets better; returns the history.

        Args:
            on_epoch: called with each new row of the history.
            on_step: called after each step with its number in the run, from 0, and its loss.

        Raises:
            CheckFailedError: a loss is not finite.
        """
        progress, config = self.progress, self.config
        scaler = LossScale(config.precision, progress.scale, progress.scale_age)
        data = iter(self._data(progress.epoch))
        while progress.epoch < config.total_epochs and not self.exhausted:
            if self._new_stage():
                self.step = self._stage_step(progress.epoch)
            start = time.perf_counter()
            row = {"epoch": progress.epoch + 1.0} | self._epoch(data, scaler, on_step)
            row["images_per_second"] = self.steps * config.batch / (time.perf_counter() - start)
            progress.epoch += 1
            progress.scale, progress.scale_age = scaler.scale, scaler.age
            row |= self._measure()
            self.history.append(row)
            self._save(row)
            on_epoch(row)
        if self.folder is not None:
            self.folder.save_weights("final.h5", self.averaged_model())
        return self.history

    def dry_run(self) -> Row:
        """Make the first step; returns its losses."""
        return self.step(next(iter(self._data(0))), self.config.learning_rate)

    def averaged_model(self) -> MaskRCNN:
        """A float32 model of ``spec`` with the current weights, averaged where averages are kept."""
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")
        try:
            model = MaskRCNN(self.spec)
        finally:
            keras.config.set_dtype_policy(policy)
        updater = self.step.updater
        averages = {id(v): a for v, a in zip(updater.trained, updater.averages, strict=False)}
        sources = self.model.learned_layers()
        for name, layer in model.learned_layers().items():
            layer.set_weights([(averages.get(id(v), v)).numpy() for v in sources[name].weights])
        return model

    @property
    def exhausted(self) -> bool:
        """Whether validation has not got better for as long as ``patience`` allows."""
        return 0 < self.config.patience <= self.progress.stale

    def _stage_step(self, epoch: int) -> TrainStep:
        stage = self.config.stages[self.config.stage_of(epoch)]
        with self.strategy.scope():
            return TrainStep(self.model, self.canvas, self.config, stage.layers)

    def _new_stage(self) -> bool:
        epoch, stage_of = self.progress.epoch, self.config.stage_of
        return epoch > 0 and stage_of(epoch) != stage_of(epoch - 1)

    def _data(self, epoch: int) -> Any:
        first, count = epoch * self.steps, self.total_steps - epoch * self.steps
        config, parallel = self.config, self.config.workers
        if self.strategy.num_replicas_in_sync == 1:
            return batches(self.make, config.batch, first, count, parallel=parallel)

        def part(context: tf.distribute.InputContext) -> Any:
            workers, worker = context.num_input_pipelines, context.input_pipeline_id
            rows = batches(self.make, config.batch, first, count, workers=workers, worker=worker, parallel=parallel)
            local = context.get_per_replica_batch_size(config.batch)
            return rows.unbatch().batch(local, drop_remainder=True)

        return self.strategy.distribute_datasets_from_function(part)

    def _epoch(self, data: Any, scaler: LossScale, on_step: Callable[[int, float], None]) -> Row:
        config, sums, norms = self.config, dict.fromkeys((*LOSSES, "loss"), 0.0), []
        first = self.progress.epoch * self.steps
        rate = 0.0
        for number in range(first, first + self.steps):
            rate = cosine(number, self.total_steps, config.learning_rate, self.warmup_steps)
            values = self.step(next(data), rate, scaler.scale)
            self._check_finite(values, number, scaler)
            scaler.update(math.isfinite(values["norm"]))
            for name in sums:
                sums[name] += values[name]
            if math.isfinite(values["norm"]):
                norms.append(values["norm"])
            if self.folder is not None:
                self.folder.log_step(number, values | {"learning_rate": rate})
            on_step(number, values["loss"])
        means = {name: value / self.steps for name, value in sums.items()}
        return means | {"norm": sum(norms) / max(1, len(norms)), "learning_rate": rate}

    def _check_batch(self) -> None:
        parts = self.strategy.num_replicas_in_sync * self.config.accumulate
        if self.config.batch % parts:
            raise UsageError(
                f"A batch of {self.config.batch} photos cannot be cut into {parts} parts (devices times accumulate).",
                f"Set --batch to a multiple of {parts}.",
            )

    def _check_finite(self, values: Row, number: int, scaler: LossScale) -> None:
        bad = [name for name in LOSSES if not math.isfinite(values[name])]
        if not math.isfinite(values["norm"]) and not scaler.may_overflow:
            bad.append("the gradient")
        if bad:
            raise CheckFailedError(
                f"Training diverged: {', '.join(bad)} is not finite at step {number + 1}.",
                "Lower train.learning_rate or lengthen train.warmup_steps and resume: the last checkpoint is sound.",
            )

    def _measure(self) -> Row:
        progress, config = self.progress, self.config
        last = progress.epoch == config.total_epochs
        if self.validate is None or (progress.epoch % config.validate_every and not last):
            return {}
        model = self.averaged_model()
        result = self.validate(model, self.folder.picture(progress.epoch) if self.folder else None)
        if result[BEST] > progress.best:
            progress.best, progress.stale = result[BEST], 0
            if self.folder is not None:
                self.folder.save_weights("best.h5", model)
        else:
            progress.stale += 1
        return result

    def _save(self, row: Row) -> None:
        if self.folder is None:
            return
        state = {"progress": vars(self.progress), "history": self.history}
        path = checkpoint_path(self.folder.path, self.progress.epoch)
        save_checkpoint(path, self.model, self.step.updater, state, keep=self.config.keep_checkpoints)
        self.folder.log_epoch(self.history)


def sample_maker(
    dataset: Dataset, spec: ModelSpec, config: TrainConfig, backgrounds: Dataset | None = None
) -> SampleMaker:
    """Makes the samples that a run with these settings trains on."""
    canvas, targets = training_canvas(spec, config), config.targets
    settings = SampleConfig(
        canvas=canvas,
        max_gt_instances=targets.max_gt_instances,
        mini_mask_shape=targets.mini_mask_shape,
        seed=config.seed,
        balance=config.balance,
        cache_bytes=config.cache_bytes,
        augment=config.augment,
    )
    return SampleMaker(dataset, spec, settings, AnchorTargets(spec, canvas, targets), backgrounds)


def training_canvas(spec: ModelSpec, config: TrainConfig) -> tuple[int, int]:
    """(height, width) of the training crop.

    Raises:
        UsageError: neither the settings nor the spec say.
    """
    if config.canvas:
        return config.canvas[0], config.canvas[1]
    if spec.largest_canvas is None:
        raise UsageError(
            f"A model with image_resize_mode={spec.image_resize_mode} has no canvas of its own to train on.",
            "Set train.canvas, for example --canvas 512.",
        )
    return spec.largest_canvas
