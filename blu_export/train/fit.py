"""The training loop: epochs, validation, checkpoints, early stop; and going on after an interruption.

The run folder::

    config.toml               data, model and training settings, as run
    checkpoints/epoch-N.npz   all state after epoch N; the newest few; a .json beside one holds what followed
    best.h5                   weights with the best validation mask AP (moving average, if one is kept)
    final.h5                  weights after the last epoch, likewise
    history.csv               one row per epoch: losses, learning rate, AP, seconds
    curves.png                the same as plots
    pictures/epoch-N.jpg      predictions on a few validation photos
    tensorboard/              the same for TensorBoard, losses also every few steps
    left_out.csv              photos and objects that could not be read
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from blu_export.data.dataset import Dataset
from blu_export.errors import CheckFailedError, UsageError
from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.spec import ModelSpec
from blu_export.train.checkpoint import (
    Progress,
    checkpoint_path,
    epoch_of,
    latest_checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_state,
)
from blu_export.train.config import LOSSES, TrainConfig
from blu_export.train.distribute import check_same_epoch
from blu_export.train.feed import Feed, check_batch
from blu_export.train.run_folder import RunFolder
from blu_export.train.samples import sample_maker, training_canvas
from blu_export.train.schedule import LossScale, stage_rate
from blu_export.train.step import TrainStep
from blu_export.train.validate import Validator

BEST = "mask_ap"
"""The entry of a validation's result by which the best weights are chosen."""

MAX_LOSS = 1e6
"""A loss beyond it is not a loss any more; an untrained model begins below 100."""

Row = dict[str, float]
Validate = Callable[[MaskRCNN, Path | None], Row]
"""Measures a model: returns ``mask_ap`` and anything else that should be in the history, and draws
predictions to the path, if there is one. With several workers each of them calls it."""


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
        check_batch(config, self.strategy)
        self.steps = config.steps_per_epoch or max(1, len(dataset) // config.batch)
        self.make = sample_maker(dataset, spec, config, backgrounds)
        self.feed = Feed(self.make, config, self.steps, self.strategy)
        self.unreadable = {"train": self.make.photos.unreadable}
        if self.make.backgrounds is not None:
            self.unreadable["backgrounds"] = self.make.backgrounds.unreadable
        if isinstance(validate, Validator):
            self.unreadable["val"] = validate.unreadable
        self.progress = Progress()
        self.history: list[Row] = []
        self._validated: MaskRCNN | None = None
        self.step = self._stage_step(0)

    def resume(self, folder: Path, changed: bool = False) -> bool:
        """Take up the newest checkpoint under ``folder``; False where there is none.

        Args:
            folder: the run folder.
            changed: the settings are others than before: a run that stopped early gets another chance.

        Raises:
            ModelFileError: it does not fit this run.
            UsageError: other workers are after another epoch.
        """
        path = latest_checkpoint(folder)
        epochs = epoch_of(path)
        check_same_epoch(self.strategy, epochs)  # before variables are made, for which all workers wait
        if path is None:
            return False
        self.step = self._stage_step(max(0, epochs - 1), self.step)  # run() goes on from there, which keeps the moments
        state = load_checkpoint(path, self.model, self.step.updater)
        self.progress, self.history = Progress(**state["progress"]), state["history"]
        if changed:
            self.progress.stale = 0
        return True

    def run(
        self,
        on_epoch: Callable[[Row], None] = lambda row: None,
        on_step: Callable[[int, float], None] = lambda number, loss: None,
        validate_start: bool = False,
    ) -> list[Row]:
        """Train to the end, or until validation no longer gets better; returns the history.

        Args:
            on_epoch: called with each new row of the history.
            on_step: called after each step with its number in the run, from 0, and its loss.
            validate_start: validate the weights that a new run begins with, as epoch 0.

        Raises:
            CheckFailedError: training diverged; the last checkpoint is sound.
            DatasetError: too many photos, or all of a batch, cannot be read.
        """
        try:
            self._run(on_epoch, on_step, validate_start)
        finally:
            self._list_unreadable()
        if self.folder is not None:
            self.folder.save_weights("final.h5", self.averaged_model())
        return self.history

    def _run(
        self, on_epoch: Callable[[Row], None], on_step: Callable[[int, float], None], validate_start: bool
    ) -> None:
        progress, config = self.progress, self.config
        if progress.epoch == 0 and not progress.unvalidated:
            progress.unvalidated = validate_start and self.validate is not None
            self._save_checkpoint()
        if progress.unvalidated:
            self._end_epoch(on_epoch)
        scaler = LossScale(config.precision, progress.scale, progress.scale_age)
        data = self.feed.begin(progress.epoch)
        while progress.epoch < config.total_epochs and not self.exhausted:
            if self._new_stage():
                self.step = self._stage_step(progress.epoch, self.step)
            start = time.perf_counter()
            row = {"epoch": progress.epoch + 1.0} | self._epoch(data, scaler, on_step)
            row["images_per_second"] = self.steps * config.batch / (time.perf_counter() - start)
            progress.epoch += 1
            progress.scale, progress.scale_age = scaler.scale, scaler.age
            progress.unvalidated = self._is_validated(progress.epoch)
            self.history.append(row)
            self._save_checkpoint()
            self._end_epoch(on_epoch)

    def dry_run(self) -> Row:
        """Make the first step; returns its losses."""
        return self.step(self.feed.next(self.feed.begin(0)), stage_rate(0, self.steps, self.config))

    def averaged_model(self) -> MaskRCNN:
        """A float32 model of ``spec`` with the current weights, averaged where averages are kept.

        It is one and the same model each time: TensorFlow would trace the graph of another one anew.
        """
        if self._validated is None:
            policy = keras.config.dtype_policy()
            keras.config.set_dtype_policy("float32")
            try:
                self._validated = MaskRCNN(self.spec)
            finally:
                keras.config.set_dtype_policy(policy)
        averages, sources = self.step.updater.averages, self.model.learned_layers()
        for name, layer in self._validated.learned_layers().items():
            layer.set_weights([averages.get(id(v), v).numpy() for v in sources[name].weights])
        return self._validated

    @property
    def exhausted(self) -> bool:
        """Whether validation has not got better for as long as ``patience`` allows."""
        return 0 < self.config.patience <= self.progress.stale

    def _stage_step(self, epoch: int, previous: TrainStep | None = None) -> TrainStep:
        stage = self.config.stages[self.config.stage_of(epoch)]
        with self.strategy.scope():
            return TrainStep(
                self.model, self.canvas, self.config, stage.layers, previous.updater if previous is not None else None
            )

    def _new_stage(self) -> bool:
        epoch, stage_of = self.progress.epoch, self.config.stage_of
        return epoch > 0 and stage_of(epoch) != stage_of(epoch - 1)

    def _epoch(self, data: Any, scaler: LossScale, on_step: Callable[[int, float], None]) -> Row:
        sums, norms = dict.fromkeys((*LOSSES, "loss"), 0.0), []
        first = self.progress.epoch * self.steps
        rate = 0.0
        for number in range(first, first + self.steps):
            rate = stage_rate(number, self.steps, self.config)
            values = self._learn(self.feed.next(data), rate, scaler.scale)
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

    def _learn(self, batch: Any, rate: float, scale: float) -> Row:
        try:
            return self.step(batch, rate, scale)
        except tf.errors.ResourceExhaustedError as error:
            raise UsageError(
                f"A batch of {self.config.batch} photos on a canvas of {self.canvas[0]}x{self.canvas[1]} does not fit "
                "in memory.",
                f"Set a smaller --batch or --canvas, or train.accumulate={2 * self.config.accumulate}.",
            ) from error

    def _check_finite(self, values: Row, number: int, scaler: LossScale) -> None:
        bad = [name for name in LOSSES if not math.isfinite(values[name])]
        if not math.isfinite(values["norm"]) and not scaler.may_overflow:
            bad.append("the gradient")
        if bad:
            raise self._diverged(f"{', '.join(bad)} is not finite at step {number + 1}")
        if values["loss"] > MAX_LOSS:
            raise self._diverged(f"the loss is {values['loss']:.3g} at step {number + 1}")

    def _diverged(self, how: str) -> CheckFailedError:
        folder = f" --out {self.folder.path}" if self.folder is not None else ""
        stage = self.config.stages[self.config.stage_of(self.progress.epoch)]
        rate = (stage.rate or self.config.learning_rate) / 10
        return CheckFailedError(
            f"Training diverged: {how}.",
            f"The last checkpoint is sound; continue with a lower rate: blu train --resume{folder} --lr {rate:.1g}",
        )

    def _is_validated(self, epoch: int) -> bool:
        due = epoch % self.config.validate_every == 0 or epoch == self.config.total_epochs
        return self.validate is not None and due

    def _end_epoch(self, on_epoch: Callable[[Row], None]) -> None:
        """What follows the checkpoint of an epoch: validation and the files that people read."""
        progress = self.progress
        if progress.epoch == 0:
            self.history = [{"epoch": 0.0}]
        row = self.history[-1]
        if progress.unvalidated:
            row |= self._measure()
            progress.unvalidated = False
            if self.folder is not None:
                save_state(checkpoint_path(self.folder.path, progress.epoch), self._state())
        if self.folder is not None:
            self.folder.log_epoch(self.history)
        self._list_unreadable()
        on_epoch(row)

    def _measure(self) -> Row:
        progress = self.progress
        assert self.validate is not None
        model = self.averaged_model()
        result = self.validate(model, self.folder.picture(progress.epoch) if self.folder else None)
        if result[BEST] > progress.best:
            progress.best, progress.stale = result[BEST], 0
            if self.folder is not None:
                self.folder.save_weights("best.h5", model)
        else:
            progress.stale += 1
        return result

    def _state(self) -> dict[str, Any]:
        return {"progress": vars(self.progress), "history": self.history}

    def _save_checkpoint(self) -> None:
        if self.folder is None:
            return
        path = checkpoint_path(self.folder.path, self.progress.epoch)
        try:
            save_checkpoint(path, self.model, self.step.updater, self._state(), keep=self.config.keep_checkpoints)
        except CheckFailedError as error:
            raise self._diverged(f"a weight is not finite after epoch {self.progress.epoch}") from error

    def _list_unreadable(self) -> None:
        if self.folder is not None:
            self.folder.save_left_out({part: found.left_out for part, found in self.unreadable.items()})
