"""Names of layers in ``.keras`` archives of Keras 2.12 to 3.5, whose weights lie under numbered classes.

``layers/conv2d_3/vars/0`` is the kernel of the fourth Conv2D in the order of the model, and the archive's configuration
lists the layers in that order. So every name follows, where each class has as many layers here as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from blu_export.errors import ModelFileError
from blu_export.model.h5 import Layers

_CONTAINERS = ("layers", "_layer_checkpoint_dependencies")
_WRAPPED = "layer"
"""What a TimeDistributed layer calls the one inside."""
MAX_DEPTH = 6
"""Models within models."""


def name_layers(by_place: Layers, config: Any, source: str) -> Layers:
    """The layers of an archive under their names.

    Args:
        by_place: under their places in the file, as ``layers/functional/layers/conv2d``.
        config: the archive's ``config.json``.
        source: how errors call the archive.

    Raises:
        ModelFileError: the configuration has other layers than the file.
    """
    try:
        names = dict(_names(list(by_place), config, "", MAX_DEPTH))
    except (KeyError, TypeError, AttributeError, RecursionError):
        names = {}
    if set(names) != set(by_place) or len(set(names.values())) < len(names):
        raise ModelFileError(
            f"{source} does not name its layers, and its configuration does not tell which is which.",
            "Load it in the program that wrote it, and save it with Keras 3.6 or newer.",
        )
    return {names[place]: tensors for place, tensors in by_place.items()}


def _names(places: list[str], model: Any, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    """(place, name) of the layers with weights below a model, ``prefix`` its place; nothing where they do not match."""
    containers = {place[len(prefix) :].split("/")[0] for place in places}
    if depth == 0 or len(containers) != 1 or not containers <= set(_CONTAINERS):
        return
    prefix += f"{containers.pop()}/"
    folders: dict[str, list[str]] = {}
    for place in places:
        folders.setdefault(place[len(prefix) :].split("/")[0], []).append(place)
    by_class: dict[str, list[tuple[int, str]]] = {}
    for folder in folders:
        match = re.fullmatch(r"(.+?)(?:_(\d+))?", folder)
        assert match is not None
        by_class.setdefault(match[1].replace("_", ""), []).append((int(match[2] or 0), folder))
    listed: dict[str, list[Any]] = {}
    for layer in model["config"]["layers"]:
        listed.setdefault(re.sub(r"\W|_", "", layer["class_name"]).lower(), []).append(layer)
    for kind, numbered in by_class.items():
        layers = listed.get(kind, [])
        if len(layers) != len(numbered):
            return
        for layer, (_, folder) in zip(layers, sorted(numbered), strict=True):
            below = folders[folder]
            place = prefix + folder
            if below in ([place], [f"{place}/{_WRAPPED}"]):
                yield below[0], str(layer["config"]["name"])
            else:
                yield from _names(below, layer, f"{place}/", depth - 1)
