"""What a user says about weights that do not say it themselves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blu_export.errors import UsageError
from blu_export.model.coco_classes import COCO_CLASSES
from blu_export.model.config_file import SPEC_FIELDS, ConfigFile, read_config
from blu_export.spec import ModelSpec

FIXED = ("backbone_strides", "image_canvas")
"""Fields that are never assumed: of one possible value, or without a use unless they are given."""
RGB = 3
SHOWN = 6
"""Assumed settings that a line for people lists."""


@dataclass(frozen=True)
class Given:
    """Options that belong to a weights file.

    Attributes:
        class_names: names by class id; the background's, id 0, may be left out. None: those in the file.
        settings: ``FIELD=VALUE`` changes of the spec; they win over everything else.
        config: settings of a file, which win over the weights'.
        ignore_layers: layers of the file, or patterns with ``*``, that the model may lack.
    """

    class_names: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ()
    ignore_layers: tuple[str, ...] = ()
    config: ConfigFile | None = None

    @classmethod
    def of(
        cls,
        class_names: Sequence[str] | None = None,
        settings: Sequence[str] = (),
        ignore_layers: Sequence[str] = (),
        config: str | os.PathLike[str] | None = None,
    ) -> Given:
        """The same from lists, and a settings file by its name: ``FILE.py``, ``FILE.py:Class``, ``FILE.toml``.

        Raises:
            UsageError, ModelFileError: see ``read_config``.
        """
        names = None if class_names is None else tuple(class_names)
        read = None if config is None else read_config(os.fspath(config))
        return cls(names, tuple(settings), tuple(ignore_layers), read)

    def spec(self, read: Mapping[str, Any], count: int, stored: ModelSpec | None = None) -> ModelSpec:
        """The spec of weights, from what they and the user say.

        Args:
            read: fields that follow from the shapes of the tensors.
            count: classes of the tensors, the background included.
            stored: the spec that the file carries.

        Raises:
            UsageError: names or settings do not fit the weights, are impossible, or cannot be read.
        """
        base = stored or ModelSpec(_default_names(count), **_with_mean(read))
        changes = base.parse_settings(self.settings)
        assumed = set(base.assumed if stored else {*SPEC_FIELDS.values(), "class_names"}.difference(read, FIXED))
        names = self.class_names
        if self.config is not None:
            _check_config(self.config, changes, read, count)
            names = names or self.config.names_for(count)
            changes = {**_values_of(self.config, base), **changes}
            assumed -= set(SPEC_FIELDS.values()) if self.config.is_whole else set(self.config.values)
        if names is not None:
            changes.setdefault("class_names", _given_names(names, count))
        channels = read.get("image_channel_count", RGB)
        if channels != RGB and "mean_pixel" not in changes:
            raise UsageError(
                f"The weights take {channels} channels, and the mean of each is not in the file.",
                "Give MEAN_PIXEL in --config, or as in --set MEAN_PIXEL=" + ",".join(["120"] * channels),
            )
        changes["assumed"] = tuple(f.name for f in dataclasses.fields(base) if f.name in assumed - set(changes))
        return base.replace(**changes)

    def lines(self) -> list[str]:
        """What the settings file says, for people."""
        return [] if self.config is None else self.config.lines()


def backbone_line(given: Given, spec: ModelSpec) -> str:
    """What people must know where a settings file names another backbone than the weights have; empty where not."""
    named = given.config.values.get("backbone") if given.config is not None else None
    if given.config is None or named in (None, spec.backbone):
        return ""
    return f"{given.config.source} has BACKBONE {named}, and the weights are those of {spec.backbone}: that is taken"


def assumptions(spec: ModelSpec) -> str:
    """The assumed fields with their values: ``image_max_dim 1024, …; class names class_1 …``; empty without any."""
    fields = [f"{name} {_show(getattr(spec, name))}" for name in spec.assumed if name != "class_names"]
    shown = ", ".join(fields[:SHOWN]) + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")
    names = "COCO's" if spec.class_names == COCO_CLASSES else f"{', '.join(spec.class_names[1:3])} …"
    return "; ".join(filter(None, [shown, f"class names {names}" if "class_names" in spec.assumed else ""]))


def assumed_line(spec: ModelSpec) -> str:
    """What people must know about assumed fields of a spec; empty if nothing was assumed."""
    known = assumptions(spec)
    return f"not in the file, the original's defaults: {known}: give --config or --set" if known else ""


def _check_config(config: ConfigFile, changes: Mapping[str, Any], read: Mapping[str, Any], count: int) -> None:
    if config.num_classes not in (None, count):
        raise UsageError(
            f"{config.source} has NUM_CLASSES {config.num_classes}, and the weights have {count} classes with the "
            "background.",
            "Give the Config that these weights were trained with.",
        )
    for name, where in config.unread.items():
        if name not in changes and name not in read:
            raise UsageError(
                f"{config.source}: {where} cannot be read without running the file.",
                f"Give the value: --set {name.upper()}=…",
            )


def _values_of(config: ConfigFile, base: ModelSpec) -> dict[str, Any]:
    """The settings of a file, without the backbone: that is in the tensors, block by block."""
    values = {name: value for name, value in config.values.items() if name != "backbone"}
    mean = values.get("mean_pixel")
    if isinstance(mean, int | float):
        values["mean_pixel"] = (mean,) * len(base.mean_pixel)
    return values


def _with_mean(read: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes that make a valid spec for the time being; the mean of other channels than RGB has to be given."""
    channels = read.get("image_channel_count", RGB)
    return dict(read) if channels == RGB else {**read, "mean_pixel": (0.0,) * channels}


def _default_names(count: int) -> tuple[str, ...]:
    if count == len(COCO_CLASSES):
        return COCO_CLASSES
    return ("BG", *(f"class_{i}" for i in range(1, count)))


def _given_names(names: Sequence[str], count: int) -> tuple[str, ...]:
    if len(names) == count - 1:
        names = ["BG", *names]
    if len(names) != count:
        raise UsageError(
            f"There are {len(names)} class names, and the weights have {count} classes with the background.",
            "Give one name for each, in the order of training; the background's may be left out.",
        )
    return tuple(names)


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_show, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


NOTHING = Given()
"""The user says nothing."""
