"""Weight files of unknown origin: ``.h5``, ``.weights.h5`` and ``.keras``.

The HDF5 library is C code that loops for ever or crashes on some damaged files (a few in ten
thousand random ones). So it reads in a process of its own, with limits on time and memory, and only
names, shapes and plain numbers come back.
"""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np

from blu_export.errors import BluError, ModelFileError
from blu_export.model.h5 import MAX_FILE_BYTES, Layers, StoredWeights, Tensor, read_layers
from blu_export.model.keras_names import name_layers

MAX_CONFIG_BYTES = 2**24
BASE_SECONDS = 5
BYTES_PER_SECOND = 2e7
"""Processor time that a file may take: ten times what a regular one needs."""
LONGEST_FACTOR = 100
"""Wall time over processor time: the backstop where processor time has no limit. A busy machine gives little."""
BASE_MEMORY = 2 * 2**30
_STDIN = "-"
_ROOT = Path(__file__).resolve().parents[2]


def read_weight_file(path: str | os.PathLike[str]) -> StoredWeights:
    """All weights of a file, and the JSON of its model spec where there is one.

    ``.keras`` archives are read without building anything that they describe.

    Raises:
        ModelFileError: missing, corrupt, of another layout, or refused for safety.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".keras":
            content, config = _open_archive(path)
            stored = _read_apart(_STDIN, path.name, len(content), content)._replace(spec=_spec_in(config))
            return stored if stored.named else stored._replace(layers=name_layers(stored.layers, config, path.name))
        stored = _read_apart(os.fspath(path), path.name, path.stat().st_size)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}.", "Check the path.") from error
    if not stored.named:
        raise ModelFileError(
            f"{path.name} does not name its layers, as files of Keras 2.12 to 3.5 in this format do not.",
            "Give the whole model, model.save('NAME.keras'), whose configuration names them; or load it in the program "
            "that wrote it, and write model.save_weights('NAME.h5') of tf_keras or "
            "model.save_weights('NAME.weights.h5') of a newer Keras.",
        )
    return stored


def _open_archive(path: Path) -> tuple[bytes, Any]:
    """The HDF5 file inside a ``.keras`` archive, and its configuration."""
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(_member(archive, "config.json", MAX_CONFIG_BYTES))
            weights = _member(archive, "model.weights.h5", MAX_FILE_BYTES)
    except (zipfile.BadZipFile, KeyError, ValueError, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
        raise ModelFileError(f"{path} is not a Keras archive ({error}).", "Save it again with model.save().") from error
    return weights, config


def _spec_in(config: Any) -> str | None:
    """The spec in an archive of ours."""
    inner = config.get("config") if isinstance(config, dict) else None
    text = inner.get("spec") if isinstance(inner, dict) else None
    return text if isinstance(text, str) else None


def _member(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """A file of an archive, read no further than its limit; Keras does not compress its archives."""
    with archive.open(name) as member:
        content = member.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{name} is too large")
    return content


def _read_apart(source: str, name: str, size: int, content: bytes | None = None) -> StoredWeights:
    """``h5.read_layers`` in a process of its own."""
    seconds = math.ceil(BASE_SECONDS + size / BYTES_PER_SECOND)
    # The child finds the modules that this process finds, and none from the current folder.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [*sys.path, str(_ROOT)]))}
    command = [sys.executable, "-P", "-m", __name__, source, name, str(seconds), str(BASE_MEMORY + 4 * size)]
    try:
        done = subprocess.run(
            command, input=content or b"", capture_output=True, env=environment, timeout=LONGEST_FACTOR * seconds
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{name} cannot be read: it keeps the HDF5 library busy.", "Copy it again.") from None
    if done.returncode < 0:
        raise ModelFileError(f"{name} is damaged: the HDF5 library fails on it.", "Copy the file again.")
    if done.returncode:
        raise RuntimeError(f"reading {name} failed: {done.stderr.decode(errors='replace')[-2000:]}")
    return _unpack(done.stdout)


def _unpack(message: bytes) -> StoredWeights:
    line, _, _ = message.partition(b"\n")
    header: dict[str, Any] = json.loads(line)
    if "error" in header:
        raise ModelFileError(*header["error"])
    layers: Layers = {}
    position = len(line) + 1
    for layer, tensors in header["layers"]:
        layers[layer] = []
        for name, shape in tensors:
            count = math.prod(shape)
            tensor: Tensor = np.frombuffer(message, "<f4", count, position).reshape(shape)
            layers[layer].append((name, tensor))
            position += 4 * count
    return StoredWeights(layers, header["spec"], header["not_float"], header["named"])


def _pack(stored: StoredWeights, out: IO[bytes]) -> None:
    """A line of JSON, then all tensors, little-endian, one after another."""
    table = [[layer, [[name, tensor.shape] for name, tensor in tensors]] for layer, tensors in stored.layers.items()]
    header = {"layers": table, "spec": stored.spec, "not_float": stored.not_float, "named": stored.named}
    out.write(json.dumps(header).encode() + b"\n")
    for tensors in stored.layers.values():
        for _, tensor in tensors:
            out.write(np.ascontiguousarray(tensor, "<f4").data)


def _main(source: str, name: str, seconds: str, memory: str) -> None:
    with suppress(ImportError, OSError, ValueError):  # no such limits on Windows; the caller's timeout remains
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds)))
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    try:
        stored = read_layers(io.BytesIO(sys.stdin.buffer.read()) if source == _STDIN else source, name)
    except BluError as error:
        out.write(json.dumps({"error": [error.what, error.fix]}).encode() + b"\n")
    else:
        _pack(stored, out)
    out.flush()


if __name__ == "__main__":
    _main(*sys.argv[1:])
