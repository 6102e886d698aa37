"""Tensors of a PyTorch ``.pth`` file of the format before version 1.6, read without PyTorch.

Such a file is a few pickles followed by the raw storages. Pickles can run code when loaded: this reader
admits the four names that a plain state dict needs and refuses all others.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from blu_export.errors import ModelFileError

_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, NDArray[Any]]:
    """Tensors by name.

    Raises:
        ModelFileError: the file is not of this kind, is cut short, or holds other objects.
    """
    try:
        with Path(path).open("rb") as file:
            return _read(file)
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, pickle.UnpicklingError) as error:
        raise ModelFileError(
            f"{os.fspath(path)} is not a legacy PyTorch state dict: {error}.", "Give a .pth file as published."
        ) from error


def _read(file: BinaryIO) -> dict[str, NDArray[Any]]:
    reader = _Reader(file)
    if reader.load() != _MAGIC:
        raise ValueError("wrong magic number")
    for _ in ("protocol version", "system information"):
        _Reader(file).load()
    reader = _Reader(file)
    tensors = reader.load()
    for key in _Reader(file).load():
        kind, size = reader.storages[key]
        if int.from_bytes(file.read(8), "little") != size:
            raise ValueError(f"storage {key} has another size than declared")
        data = file.read(size * kind.itemsize)
        reader.storages[key] = np.frombuffer(data, kind, count=size)
    return {name: tensor(reader.storages) for name, tensor in tensors.items()}


class _Reader(pickle.Unpickler):
    """Leaves tensors as functions of the storages, which come after the pickle."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[str, Any] = {}

    def persistent_load(self, pid: Any) -> str:
        """Note a storage's type and size; its key stands for it."""
        _, kind, key, _, size, _ = pid
        self.storages[key] = (kind, size)
        return str(key)

    def find_class(self, module: str, name: str) -> Any:
        """The only names that are admitted."""
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


def _tensor(key: str, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    def build(storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
        storage = storages[key]
        last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
        if min((offset, *(side - 1 for side in size), *stride)) < 0 or last >= len(storage):
            raise ValueError("a tensor lies outside its storage")
        strides = [step * storage.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()

    return build
