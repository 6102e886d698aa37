"""The sidecar: what an engine is, written beside it, and checked before it is loaded.

An engine is native code. The file itself stays as the builder made it, so that other programs load it;
``NAME.engine.json`` says what it was built from, for which card, by what, and how well it was checked.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blu_export.errors import ModelFileError
from blu_export.files import atomic_write
from blu_export.image import canvas_of
from blu_export.spec import SIZE_MULTIPLE, ModelSpec

SIDECAR_VERSION = 2
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Batch:
    """Batch sizes of an engine's optimization profile."""

    smallest: int
    best: int
    """What the builder optimizes for."""
    largest: int


@dataclass(frozen=True)
class Canvases:
    """Canvases of an engine's optimization profile, each (height, width) in pixels."""

    smallest: tuple[int, int]
    best: tuple[int, int]
    """What the builder optimizes for."""
    largest: tuple[int, int]

    @classmethod
    def of(cls, spec: ModelSpec, best: tuple[int, int] | None = None) -> Canvases:
        """The spec's one canvas, or those of photos that it follows, up to ``image_max_dim`` on each side.

        Args:
            best: the most frequent one; default: that of photos in 4:3, or the largest where there is no limit.
        """
        if spec.canvas is not None:
            return cls(spec.canvas, spec.canvas, spec.canvas)
        side = -(-spec.image_max_dim // SIZE_MULTIPLE) * SIZE_MULTIPLE
        usual = (side, side) if spec.largest_canvas is None else canvas_of(480, 640, spec)
        return cls((SIZE_MULTIPLE, SIZE_MULTIPLE), best or usual, (side, side))

    def hold(self, height: int, width: int) -> bool:
        """Whether the engine takes a canvas of this size."""
        sides = zip(self.smallest, (height, width), self.largest, strict=True)
        return all(low <= side <= high for low, side, high in sides)

    @property
    def fixed(self) -> bool:
        """Whether there is one only."""
        return self.smallest == self.largest


@dataclass(frozen=True)
class Sidecar:
    """What is known about an engine."""

    engine_sha256: str
    onnx_sha256: str
    """Of the ONNX file that the user named."""
    spec: ModelSpec
    builder: str
    """``tensorrt`` or ``tensorrt-rtx``."""
    builder_version: str
    target: str
    """As the user named it: ``t4``."""
    capability: tuple[int, int]
    """Compute capability."""
    precision: str
    """Of the subnetworks: ``float32``, ``fp16`` or ``int8``."""
    batch: Batch
    canvases: Canvases
    rebuild: str
    """The command that builds it again."""
    onnx_name: str = ""
    built_on: str = ""
    """GPU of the target that was there during the build; empty where there was none."""
    build_seconds: float = 0.0
    fallback_layers: dict[str, str] = field(default_factory=dict)
    """Layers that are not in ``precision`` -> why."""
    typed_share: float | str = UNKNOWN
    """Share of learned layers whose weights are half or int8 in the graph that the builder was given."""
    reduced_share: float | str = UNKNOWN
    """Share of them that the engine inspector shows in half or int8; ``unknown`` where no inspector ran."""
    reduced_note: str = ""
    log: dict[str, Any] = field(default_factory=dict)
    """Summary of the builder's log."""
    parity: dict[str, Any] | None = None
    """blu verify's report of this engine, run on a GPU; None where it was not."""
    emulation: dict[str, Any] | None = None
    """The same for the typed graph, its roundings made explicit, run on a processor."""
    blu_version: str = ""
    version: int = SIDECAR_VERSION

    def to_json(self) -> str:
        """As in the file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        values["spec"] = json.loads(self.spec.to_json())
        values["batch"] = dataclasses.asdict(self.batch)
        values["canvases"] = dataclasses.asdict(self.canvases)
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "sidecar") -> Sidecar:
        """Read a sidecar; ``source`` names it in errors.

        Raises:
            ModelFileError: it is not a sidecar, or one of a newer version.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise TypeError("not a JSON object")
            if values.get("version", SIDECAR_VERSION) > SIDECAR_VERSION:
                raise ModelFileError(f"{source} was written by a newer blu.", "Upgrade blu-export.")
            if "kept" in values:  # before version 2
                values["fallback_layers"] = values.pop("kept")
            values["spec"] = ModelSpec.from_json(json.dumps(values["spec"]), source)
            values["batch"] = Batch(**values["batch"])
            values["canvases"] = _read_canvases(values.get("canvases"), values["spec"])
            values["capability"] = tuple(int(n) for n in values["capability"])
            sidecar = cls(**values)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise ModelFileError(
                f"{source} is not an engine description ({type(error).__name__}: {error}).",
                "Build the engine again with blu build-engine.",
            ) from error
        sizes = (sidecar.batch.smallest, sidecar.batch.best, sidecar.batch.largest)
        texts = (sidecar.engine_sha256, sidecar.builder, sidecar.builder_version, sidecar.rebuild, sidecar.precision)
        sane = all(isinstance(n, int) for n in sizes) and 1 <= sizes[0] <= sizes[1] <= sizes[2]
        if not (sane and len(sidecar.capability) == 2 and all(isinstance(text, str) for text in texts)):
            raise ModelFileError(f"{source} has values of the wrong kind.", "Build the engine again.")
        return sidecar

    def write(self, engine: Path) -> Path:
        """Write it beside the engine; returns the path."""
        path = sidecar_path(engine)
        with atomic_write(path) as temporary:
            temporary.write_text(self.to_json(), encoding="utf-8")
        return path

    def check_hash(self, engine: Path, data: bytes) -> None:
        """Raise ModelFileError when an engine's content is not what this sidecar describes."""
        if hashlib.sha256(data).hexdigest() != self.engine_sha256:
            raise ModelFileError(
                f"{engine} is not the engine that {sidecar_path(engine).name} describes, and is not loaded: "
                "an engine is native code.",
                f"Build it again: {self.rebuild}",
            )

    def check_builder(self, engine: Path, version: str) -> None:
        """Raise ModelFileError when the installed builder did not write this engine.

        Engines are tied to TensorRT's version, the patch number included.
        """
        if version != self.builder_version:
            raise ModelFileError(
                f"{engine} was built by {self.builder} {self.builder_version}, and {version} is installed.",
                f"Build it again: {self.rebuild}",
            )

    def check_device(self, engine: Path, name: str, capability: tuple[int, int]) -> None:
        """Raise ModelFileError when the engine is for another kind of card."""
        if capability != self.capability:
            here, there = (f"sm{a}{b}" for a, b in (capability, self.capability))
            raise ModelFileError(
                f"{engine} was built for {self.target} ({there}), and this GPU is {name} ({here}).",
                f"Build it for this GPU: {_retargeted(self.rebuild, here)}",
            )


def _read_canvases(values: Any, spec: ModelSpec) -> Canvases:
    """Those of a sidecar; one that does not name them is of an engine of one canvas."""
    if values is None:
        return Canvases.of(spec)
    height_width = {name: tuple(int(side) for side in values[name]) for name in ("smallest", "best", "largest")}
    if any(len(size) != 2 for size in height_width.values()):
        raise ValueError("a canvas is not height and width")
    canvases = Canvases(**height_width)  # type: ignore[arg-type]
    if not (canvases.hold(*canvases.best) and min(canvases.smallest) > 0):
        raise ValueError("the canvases are not in order")
    return canvases


def sidecar_path(engine: str | os.PathLike[str]) -> Path:
    """``NAME.engine.json`` of ``NAME.engine``."""
    path = Path(engine)
    return path.with_name(path.name + ".json")


def read_sidecar(engine: str | os.PathLike[str]) -> Sidecar:
    """The sidecar of an engine.

    Raises:
        ModelFileError: there is none, or it cannot be read.
    """
    path = sidecar_path(engine)
    try:
        return Sidecar.from_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelFileError(
            f"{os.fspath(engine)} has no sidecar {path.name}, so nothing says what it is.",
            "Copy it along with the engine, or build the engine with: blu build-engine MODEL.onnx",
        ) from error


def _retargeted(command: str, target: str) -> str:
    """The command for another card; the name of the file is left to it, which would overwrite this engine."""
    try:
        words = shlex.split(command)
    except ValueError:  # no command of ours
        return f"{command} --target {target}"
    if "-o" in words:
        place = words.index("-o")
        del words[place : place + 2]
    if "--target" in words:
        words[words.index("--target") + 1] = target
    else:
        words += ["--target", target]
    return shlex.join(words)
