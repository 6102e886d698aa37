"""The samples of a run: what its settings make of the data set."""

from __future__ import annotations

from blu_export.data.dataset import Dataset
from blu_export.data.pipeline import SampleConfig, SampleMaker
from blu_export.errors import UsageError
from blu_export.spec import ModelSpec
from blu_export.train.config import TrainConfig
from blu_export.train.memory import host_memory
from blu_export.train.targets import AnchorTargets

CACHE_SHARE = 0.25
"""Of the free memory that decoded photos may take."""


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
        cache_bytes=int(min(config.cache_bytes, CACHE_SHARE * host_memory())),
        unreadable=config.unreadable,
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
