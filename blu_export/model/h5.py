"""HDF5 weight files, read as if their author were hostile.

Three layouts, all as layers with tensors in order:

- Keras 2 ``save_weights``: ``layer_names`` on the root, one group per layer, ``weight_names`` on each;
- the same below a ``model_weights`` group, as Keras 2 ``model.save("x.h5")`` writes it;
- Keras 3 ``.weights.h5`` (and the one inside a ``.keras`` archive): a ``vars`` group per layer whose
  attribute ``name`` is the layer's; that of a ``TimeDistributed`` layer is empty, and the tensors lie in
  ``layer/vars``. Before Keras 3.6 there is no such attribute: see ``keras_names``.

HDF5 can refer to other files, run plug-ins and claim any size, so nothing is followed, decoded or
allocated before it was looked at.
"""

from __future__ import annotations

import io
import os
import re
from itertools import takewhile
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from blu_export.contract import Metadata
from blu_export.errors import ModelFileError

MAX_FILE_BYTES = 4 * 2**30
MAX_GROUPS = 20_000
"""Groups of one file; a ResNet-101 Mask R-CNN has 394 layers."""
MAX_TENSORS = 10_000
"""Tensors of one layer; a nested model is one layer."""
MAX_RANK = 8
MAX_EXPANSION = 100
"""Decoded bytes per byte of the file: compressed weights shrink by a tenth, bombs a thousandfold."""
MAX_ATTRIBUTE_BYTES = 2**24
MAX_DEPTH = 12
"""Groups below groups; Keras writes six levels."""
ATTRIBUTE_CHUNK = 60_000
"""Bytes of one attribute. HDF5 takes 64 kB; Keras too spreads longer lists over ``name0``, ``name1``, …"""

SPEC_ATTRIBUTE = str(Metadata.SPEC)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_SAFE_FILTERS = {
    h5py.h5z.FILTER_DEFLATE,
    h5py.h5z.FILTER_SHUFFLE,
    h5py.h5z.FILTER_FLETCHER32,
    h5py.h5z.FILTER_LZF,  # compiled into h5py
}
"""Any other filter may load a plug-in."""
_LIBRARY_ERRORS = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError, MemoryError)
"""What h5py raises on damaged files; ``UnicodeDecodeError`` is a ValueError."""

Tensor = NDArray[np.float32]
Layers = dict[str, list[tuple[str, Tensor]]]
"""Layer -> (inner name, tensor) in the order of the file. Layers without weights are left out."""


class StoredWeights(NamedTuple):
    """What a weights file holds."""

    layers: Layers
    spec: str | None
    """JSON of the model spec that our own files carry."""
    not_float: dict[str, str]
    """``layer/tensor`` -> type of the tensors that were left out since they are not floats: counters, states of
    random generators."""
    named: bool = True
    """Whether layers have their names; else their places in the file."""


def read_layers(source: str | os.PathLike[str] | io.BytesIO, name: str) -> StoredWeights:
    """All weights of a file, and the model spec that our own files carry.

    Call it for files that this program wrote; ``weight_files.read_weight_file`` is for all others,
    since a damaged file can make the HDF5 library loop for ever or crash.

    Args:
        source: path, or the content of a file.
        name: how errors call it.

    Raises:
        ModelFileError: missing, corrupt, of another layout, or refused for safety.
    """
    try:
        size = _check_header(source, name)
        with h5py.File(source, "r", locking=False) as file:
            reader = _Reader(name, size)
            return StoredWeights(reader.layers(file), reader.spec(file), reader.not_float, reader.named)
    except _LIBRARY_ERRORS as error:
        raise ModelFileError(f"{name} cannot be read as HDF5 ({_one_line(error)}).", "Copy the file again.") from error


def write_layers(path: str | os.PathLike[str], layers: Layers, spec_json: str, half: bool = False) -> None:
    """Write the flat Keras 2 layout, which Matterport's program reads too, with the spec beside it.

    With ``half`` kernels are stored in 16 bits; vectors, the variances among them, always in 32.
    """
    with h5py.File(path, "w", libver="earliest") as file:
        _write_strings(file, "layer_names", [name.encode() for name in layers])
        file.attrs["backend"] = b"tensorflow"
        file.attrs["keras_version"] = b"2.0.8"
        text = spec_json.encode()
        pieces = [text[i : i + ATTRIBUTE_CHUNK] for i in range(0, len(text), ATTRIBUTE_CHUNK)]
        for i, piece in enumerate(pieces):
            file.attrs[SPEC_ATTRIBUTE if len(pieces) == 1 else f"{SPEC_ATTRIBUTE}{i}"] = piece
        for layer, tensors in layers.items():
            group = file.create_group(layer)
            _write_strings(group, "weight_names", [name.encode() for name, _ in tensors])
            for name, tensor in tensors:
                dtype = np.float16 if half and tensor.ndim > 1 else np.float32
                group.create_dataset(name, data=np.asarray(tensor, dtype))


def _write_strings(group: Any, name: str, values: list[bytes]) -> None:
    strings = np.asarray(values)  # fixed width: old h5py cannot read others
    pieces = np.array_split(strings, max(1, -(-strings.nbytes // ATTRIBUTE_CHUNK)))
    for i, piece in enumerate(pieces):
        group.attrs[name if len(pieces) == 1 else f"{name}{i}"] = piece


def _check_header(source: str | os.PathLike[str] | io.BytesIO, name: str) -> int:
    """The file's size, once it is known to begin as HDF5 does and to be of a size that can be."""
    if isinstance(source, io.BytesIO):
        content = source.getbuffer()
        size, start = len(content), bytes(content[: len(_SIGNATURE)])
    else:
        size = os.path.getsize(source)
        with open(source, "rb") as file:
            start = file.read(len(_SIGNATURE))
    if start != _SIGNATURE:
        raise ModelFileError(f"{name} is not an HDF5 file.", "Give a Keras weights file (.h5) or archive (.keras).")
    if size > MAX_FILE_BYTES:
        raise ModelFileError(f"{name} is larger than any weights file ({size} bytes).")
    return size


class _Reader:
    """Reads one file; counts what it has taken against the limits."""

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.bytes_left = min(MAX_FILE_BYTES, MAX_EXPANSION * size)
        self.groups_left = MAX_GROUPS
        self.not_float: dict[str, str] = {}
        self.named = True

    def layers(self, file: Any) -> Layers:
        root = file
        if not _has_attribute(file, "layer_names") and "model_weights" in file:
            root = self._child(file, "model_weights", h5py.Group)
        if _has_attribute(root, "layer_names"):
            return self._keras2(root)
        layers: Layers = {}
        self._keras3(file, layers, MAX_DEPTH, skip="optimizer")
        if not layers:
            raise ModelFileError(
                f"{self.name} holds no Keras layers.",
                "Write weights with model.save_weights() or model.save() of Keras.",
            )
        return layers

    def spec(self, file: Any) -> str | None:
        if not _has_attribute(file, SPEC_ATTRIBUTE):
            return None
        return "".join(self._strings(file, SPEC_ATTRIBUTE))

    def _keras2(self, root: Any) -> Layers:
        layers: Layers = {}
        for layer in self._strings(root, "layer_names"):
            if layer in layers:
                self._refuse(f"it names layer '{layer}' twice")
            group = self._below(root, layer)
            names = self._strings(group, "weight_names")
            if len(names) > MAX_TENSORS:
                self._refuse(f"layer '{layer}' has {len(names)} tensors")
            self._add(layers, layer, group, names)
        return layers

    def _keras3(self, group: Any, layers: Layers, depth: int, wrapper: str | None = None, skip: str = "") -> None:
        """Add the layers below a group; ``wrapper`` is the name of a layer whose only content the group is."""
        if depth == 0:
            self._refuse("its groups are nested too deep")
        members = {name: self._child(group, name, (h5py.Group, h5py.Dataset)) for name in group if name != skip}
        folders = {name: member for name, member in members.items() if isinstance(member, h5py.Group)}
        variables = folders.pop("vars", None)
        name = wrapper
        if variables is not None:
            name = wrapper or variables.attrs.get("name")
            keys = sorted((key for key in variables if key.isdecimal()), key=int)[:MAX_TENSORS]
            if keys and not isinstance(name, str):
                self.named, layer = False, group.name.strip("/")
            else:
                layer = str(name)
            if keys and layer in layers:
                self._refuse(f"it has two layers named '{layer}'")
            if keys:
                self._add(layers, layer, variables, keys)
        is_wrapper = variables is not None and not len(variables) and isinstance(name, str)
        for folder, member in folders.items():
            self._keras3(member, layers, depth - 1, name if is_wrapper and folder == "layer" else None)

    def _add(self, layers: Layers, layer: str, group: Any, names: list[str]) -> None:
        """The tensors of one layer; what is not float is noted by name."""
        tensors = []
        for name in names:
            data = self._dataset(group, name)
            if data.dtype.kind == "f" and data.dtype.itemsize <= 8:
                tensors.append((name, self._tensor(data, name)))
            else:
                self.not_float[f"{layer}/{name}"] = str(data.dtype)
        if tensors:
            layers[layer] = tensors

    def _below(self, group: Any, path: str) -> Any:
        """A group by its path from another one."""
        for folder in [part for part in path.split("/") if part][:MAX_DEPTH]:
            group = self._child(group, folder, h5py.Group)
        return group

    def _dataset(self, group: Any, path: str) -> Any:
        folders, _, leaf = path.rpartition("/")
        return self._child(self._below(group, folders), leaf, h5py.Dataset)

    def _tensor(self, data: Any, path: str) -> Tensor:
        where = f"tensor '{path}'"
        if data.shape is None or len(data.shape) > MAX_RANK:
            self._refuse(f"{where} has no proper shape")
        if data.is_virtual or data.external:
            self._refuse(f"{where} keeps its data in other files")
        creation = data.id.get_create_plist()
        if any(creation.get_filter(i)[0] not in _SAFE_FILTERS for i in range(creation.get_nfilters())):
            self._refuse(f"{where} is compressed by an uncommon filter")
        # A chunk is decoded whole, however little of it the tensor uses.
        elements = max(_product(data.shape), _product(data.chunks or ()))
        self.bytes_left -= elements * max(4, data.dtype.itemsize)
        if self.bytes_left < 0:
            self._refuse("its tensors claim to be far larger than the file")
        values: Tensor = np.asarray(data[()], np.float32)
        if not np.isfinite(values).all():
            half = data.dtype.itemsize == 2  # variances are often beyond it
            raise ModelFileError(
                f"{where[0].upper()}{where[1:]} of {self.name} is not finite.",
                "Save it as float32: float16 ends at 65,504." if half else "The training that wrote it diverged.",
            )
        return values

    def _child(self, group: Any, name: str, kind: Any) -> Any:
        """A direct member of a group, unless it is a link to elsewhere."""
        self.groups_left -= 1
        if self.groups_left < 0:
            self._refuse(f"it has more than {MAX_GROUPS} members")
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            self._refuse(f"'{name}' is a link to elsewhere")
        child = group[name]
        if not isinstance(child, kind):
            self._refuse(f"'{name}' is not what the layout has there")
        return child

    def _strings(self, group: Any, name: str) -> list[str]:
        """A list of strings from attribute ``name``, or from ``name0``, ``name1``, …"""
        numbered = takewhile(group.attrs.__contains__, (f"{name}{i}" for i in range(MAX_GROUPS)))
        found: list[str] = []
        for piece in [name] if name in group.attrs else numbered:
            attribute = group.attrs.get_id(piece)
            if attribute.shape == (0,):  # Keras 2: no weights, an empty list of float64
                continue
            if attribute.get_storage_size() > MAX_ATTRIBUTE_BYTES or _product(attribute.shape or ()) > MAX_GROUPS:
                self._refuse(f"attribute '{piece}' is too large")
            if attribute.dtype.kind != "S" and h5py.check_string_dtype(attribute.dtype) is None:
                self._refuse(f"attribute '{piece}' is not text")
            values = np.ravel(np.asarray(group.attrs[piece], object))
            found += [value.decode() if isinstance(value, bytes) else str(value) for value in values]
        return found

    def _refuse(self, why: str) -> None:
        raise ModelFileError(f"{self.name} is refused: {why}.", "Take the weights from their original source.")


def _has_attribute(group: Any, name: str) -> bool:
    return name in group.attrs or f"{name}0" in group.attrs


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= int(side)
    return product


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))[:200] or type(error).__name__
