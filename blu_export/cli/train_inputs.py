"""What a run begins with: photos from the table [data], and the spec from [model] and the weights."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from blu_export.cli.common import progress
from blu_export.cli.data_check import read_options
from blu_export.errors import DatasetError, UsageError
from blu_export.spec import MAX_CHANNELS
from blu_export.train.config import MODEL_FIELDS, DataConfig, RunConfig

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset
    from blu_export.data.options import ReadOptions
    from blu_export.spec import ModelSpec

RGB = 3


def open_data(data: DataConfig, cached: bool | None = None) -> tuple[Dataset, Dataset | None]:
    """The training and the validation photos that the table [data] names.

    ``cached`` is about the index of DeepFashion2's annotations, see ``load_dataset``.
    """
    from blu_export.data.classes import match_classes, require_trainable
    from blu_export.data.load import has_split, load_dataset

    if not data.train:
        raise UsageError("There is no data set to train on.", "Give --dataset, or data.train in the configuration.")

    def part(source: str, split: str) -> Dataset:
        # Only the training set as a whole says what the classes are: further sets may have objects of a class that
        # this one lacks, and the validation set need not have all of them.
        keep = data.keep_empty_classes or bool(data.more) or split == "val"
        options = read_data_options(data, keep)
        found = load_dataset(source, split, cached=cached, progress=progress, options=options)
        if not found.records:
            raise DatasetError(f"{found.name} has no photos.", "Give a data set with photos.")
        return found

    photos = part(data.train, "train")
    source = data.val or (data.train if has_split(data.train, "val") else None)
    validation = part(source, "val") if source else None
    if not data.more:
        require_trainable(photos, data.keep_empty_classes)
    return photos, validation and match_classes(validation, photos.class_names)


def read_data_options(data: DataConfig, keep_empty_classes: bool) -> ReadOptions:
    """How the table [data] wants photos and annotations read."""
    return read_options(
        data.images or None,
        data.limit or None,
        data.strict,
        data.exif,
        keep_empty_classes,
        max_pixels=data.max_pixels or None,
        bits=data.bits or None,
    )


def open_additions(data: DataConfig, photos: Dataset) -> tuple[Dataset, Dataset | None]:
    """The training photos with what [data] adds to them, and the background photos."""
    from blu_export.data.classes import match_classes, require_trainable
    from blu_export.data.load import load_cutouts, load_dataset

    options = dataclasses.replace(read_data_options(data, keep_empty_classes=True), images=None)
    for source in data.more:
        more = load_dataset(source, "train", options=options)
        photos = photos.joined(match_classes(more, photos.class_names))
    if data.more:
        require_trainable(photos, data.keep_empty_classes)
    if data.cutouts:
        photos = photos.with_cutouts(load_cutouts(data.cutouts))
    if not data.backgrounds:
        return photos, None
    backgrounds = load_dataset(data.backgrounds, "train", options=dataclasses.replace(options, limit=None))
    return photos, match_classes(backgrounds, photos.class_names)


def make_spec(run: RunConfig, photos: Dataset) -> ModelSpec:
    """The model of the configuration, with the class names of the data.

    Where training starts from the weights of a whole model, that model's spec stands for what the
    configuration leaves open. That of a run folder leaves nothing open: the weights may be gone.
    """
    from blu_export.spec import ModelSpec
    from blu_export.train.start import weights_file

    names = photos.class_names
    path = weights_file(run.weights) if set(MODEL_FIELDS) - set(run.model) else None
    if path is None:
        return ModelSpec(class_names=names).replace(**_with_mean(run.model, RGB))
    from blu_export.model.weights import read_weights

    base = read_weights(path).spec.replace(class_names=names, provenance={}, assumed=())
    return base.replace(**_with_mean(run.model, base.image_channel_count))


def _with_mean(model: dict[str, Any], channels: int) -> dict[str, Any]:
    """[model], in which a number of channels of its own comes with their mean.

    Raises:
        UsageError: it does not.
    """
    wanted = model.get("image_channel_count", channels)
    if wanted == channels or "mean_pixel" in model or not isinstance(wanted, int) or not 1 <= wanted <= MAX_CHANNELS:
        return model
    raise UsageError(
        f"The model takes {wanted} channels, and their mean is not known.",
        f"Give it, 0 to 255 for each: --set 'model.mean_pixel=[{', '.join(['120'] * wanted)}]'",
    )
