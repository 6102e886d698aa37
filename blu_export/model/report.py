"""Which tensors of a model a weights file can fill, and which of the file are left over."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from blu_export.errors import ModelFileError, UsageError
from blu_export.model.h5 import Layers
from blu_export.model.layers import Shape

LISTED = 8
"""Tensors of each kind that an error lists; the report has all."""
_COUNTERS = re.compile(
    r"(iter|iterations|(global_|local_)?step|count|counter|total|epoch|learning_rate|decay|beta_[12])"
)
_OPTIMIZERS = re.compile(
    r"training|optimizer\w*|(loss_scale_)?(sgd|adam|adamw|nadam|adamax|adagrad|adadelta|rmsprop|ftrl|lion)(_\d+)?", re.I
)


@dataclass(frozen=True)
class WeightReport:
    """What became of each tensor; names are ``layer/tensor``."""

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    """Of the model, not in the file."""
    unexpected: tuple[str, ...]
    """In the file, of layers that the model lacks: it would compute something else without them."""
    wrong_shape: tuple[tuple[str, Shape, Shape], ...]
    """Name, shape in the model, shape in the file."""
    leftover: tuple[str, ...] = ()
    """In the file, of no use to inference: what training leaves, and layers that the user ignores."""

    @property
    def fits(self) -> bool:
        """Every tensor of the model was in the file, in its shape."""
        return not self.missing and not self.wrong_shape

    @property
    def complete(self) -> bool:
        """The model has all tensors, and the file has no layers beyond the model's."""
        return self.fits and not self.unexpected

    def summary(self) -> str:
        """One line: how many tensors of each kind."""
        counts = [f"{len(self.loaded)} tensors loaded"]
        counts += [
            f"{len(names)} {kind}"
            for kind, names in (
                ("missing", self.missing),
                ("of a wrong shape", self.wrong_shape),
                ("unexpected", self.unexpected),
                ("left over from training", self.leftover),
            )
            if names
        ]
        return ", ".join(counts)

    def details(self, limit: int = LISTED) -> str:
        """The tensors that did not fit, at most ``limit`` of each kind, one a line."""
        wrong = [f"{name} is {list(found)}, not {list(wanted)}" for name, wanted, found in self.wrong_shape]
        kinds = (
            ("missing", self.missing),
            ("wrong shape", wrong),
            ("unexpected", self.unexpected),
            ("left over", self.leftover),
        )
        lines = []
        for kind, names in kinds:
            lines += [f"  {kind}: {name}" for name in names[:limit]]
            if len(names) > limit:
                lines.append(f"  {kind}: and {len(names) - limit} more")
        return "\n".join(lines)

    def require(self, source: str, model: str) -> None:
        """Raise ModelFileError unless ``complete``; ``model`` says in words what was to be filled."""
        if not self.fits:
            raise ModelFileError(
                f"{source} does not fit {model}: {self.summary()}.\n{self.details()}\n",
                "Check that the file holds the weights of a whole Mask R-CNN, and the settings it was trained with.",
            )
        if self.unexpected:
            layers = list(dict.fromkeys(name.split("/")[0] for name in self.unexpected))
            some = ", ".join(layers[:LISTED]) + (f" and {len(layers) - LISTED} more" if len(layers) > LISTED else "")
            raise ModelFileError(
                f"{source} holds weights of layers that {model} does not have: {some}. Without them it would "
                "compute something else than the model that was trained.",
                "If only training needs them, name them: "
                + " ".join(f"--ignore-layers {layer}" for layer in layers[:LISTED]),
            )


def compare(
    wanted: Mapping[str, Sequence[tuple[str, Shape]]],
    found: Layers,
    ignored: Sequence[str] = (),
    not_float: Mapping[str, str] | None = None,
) -> WeightReport:
    """Which tensors of a model (layer -> name and shape of each) a file can fill.

    Args:
        ignored: names or patterns of layers that the model may lack.
        not_float: ``layer/tensor`` -> type of tensors that are not weights.

    Raises:
        UsageError: an ignored layer is the model's, or is not in the file.
        ModelFileError: a tensor of the model's layers is not float.
    """
    loaded: list[str] = []
    missing: list[str] = []
    unexpected: list[str] = []
    leftover: list[str] = []
    wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
    other = not_float or {}
    _check_ignored(ignored, wanted, {*found, *(name.split("/")[0] for name in other)})
    for name, kind in other.items():
        if name.split("/")[0] in wanted:
            raise ModelFileError(f"Tensor {name} holds {kind} values, not floats.", "Take the file from its source.")
        leftover.append(name)
    for layer in found.keys() - wanted.keys():
        is_ignored = any(fnmatchcase(layer, pattern) for pattern in ignored)
        for name, tensor in found[layer]:
            known = is_ignored or is_leftover(layer, name, tensor.shape)
            (leftover if known else unexpected).append(f"{layer}/{name}")
    for layer, tensors in wanted.items():
        stored = found.get(layer, [])
        unexpected += [f"{layer}/{name}" for name, _ in stored[len(tensors) :]]
        for index, (name, shape) in enumerate(tensors):
            full = f"{layer}/{name}"
            if index >= len(stored):
                missing.append(full)
            elif stored[index][1].shape != shape:
                wrong.append((full, shape, stored[index][1].shape))
            else:
                loaded.append(full)
        # More tensors than the layer has: it is another kind of layer, and their order means nothing.
        if len(stored) > len(tensors):
            wrong.append((layer, (len(tensors),), (len(stored),)))
    return WeightReport(tuple(loaded), tuple(missing), tuple(unexpected), tuple(wrong), tuple(leftover))


def is_leftover(layer: str, name: str, shape: Shape) -> bool:
    """Whether a tensor outside the model's layers is one that training is known to leave.

    These are the anchors as a variable (TF2 ports of the original), counters, and the optimizer's state.
    """
    *scopes, leaf = f"{layer}/{name}".split("/")
    leaf = leaf.partition(":")[0]
    if len(shape) in (2, 3) and shape[-1] == 4 and re.search(r"anchor", f"{layer}/{name}", re.I):
        return True
    if shape in ((), (1,)) and _COUNTERS.fullmatch(leaf):
        return True
    return any(_OPTIMIZERS.fullmatch(scope) for scope in scopes)


def _check_ignored(ignored: Sequence[str], wanted: Mapping[str, object], found: set[str]) -> None:
    for pattern in ignored:
        if own := [layer for layer in wanted if fnmatchcase(layer, pattern)]:
            raise UsageError(
                f"{own[0]} is a layer of the model and cannot be ignored.", "Name layers that the model lacks."
            )
        if not any(fnmatchcase(layer, pattern) for layer in found):
            raise UsageError(f"There is no layer {pattern} in the weights.", "Leave it out of --ignore-layers.")
