"""A model repository for the Triton server: the network, and a Python model that takes photos.

    REPOSITORY/
      NAME_network/   config.pbtxt, labels.txt, warmup/, 1/model.onnx or model.plan
      NAME/           config.pbtxt, labels.txt, 1/model.py, 1/blu_export/

Clients call NAME: the inputs and outputs are those of ``blu serve`` (serve.oip). It holds the modules that it
needs of this package, so that ``mold`` and ``unmold`` are those that the model was checked with. Both configurations
are written as protobuf text; https://github.com/triton-inference-server/common has the schema.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.contract import (
    MAX_MASK_BYTES,
    MAX_PHOTO_PIXELS,
    PHOTO_INPUT,
    PHOTO_OUTPUTS,
    Tensor,
    config_type,
    graph_inputs,
    graph_outputs,
)
from blu_export.errors import ModelFileError, UsageError
from blu_export.runtime.onnx_file import read_onnx, spec_of
from blu_export.spec import ModelSpec
from blu_export.tensorrt.sidecar import read_sidecar

HELD_MODULES = (
    "__init__",
    "boxes",
    "errors",
    "fields",
    "rle",
    "detections",
    "instances",
    "telemetry",
    "spec",
    "image.__init__",
    "image.decode",
    "image.bands",
    "image.structure",
    "image.canvas",
    "image.results",
)
"""Modules of this package that the Python model imports, directly or not."""
MAX_BATCH = 8
KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
WARMUP_CANVAS = (64, 64)
"""Size of the warm-up's canvas where canvases follow the photo without a limit."""

_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "float32": "TYPE_FP32"}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class TritonSettings:
    """How Triton runs a model."""

    name: str | None = None
    """Of the model in the repository; None: the stem of the model file."""
    max_batch: int | None = None
    """Canvases per call of the network, at most; None: MAX_BATCH, or the largest that an engine takes."""
    batch_delay: float = 0.0
    """Seconds that a canvas waits for others."""
    instances: int = 1
    """Copies of the network, per GPU where it runs on GPUs."""
    frontends: int | None = None
    """Processes that decode and un-mold. Each works on one photo at a time, so that they bound the batch;
    None: as many as ``max_batch``."""
    kind: str = "auto"
    """``cpu``, ``gpu``, or ``auto``: GPUs where there are any."""

    def __post_init__(self) -> None:
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(f"'{self.name}' is not a model name.", "Use letters, digits, '_', '.' and '-'.")
        if self.kind not in KINDS:
            raise UsageError(f"There is no kind '{self.kind}'.", f"Kinds are {', '.join(KINDS)}.")
        for field in ("max_batch", "instances", "frontends"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise UsageError(f"{field} must be at least 1, not {value}.")
        if not 0 <= self.batch_delay <= 60:
            raise UsageError(f"The batch delay must be 0 to 60 s, not {self.batch_delay}.")


@dataclass(frozen=True)
class Network:
    """The part of a repository that a runtime runs."""

    spec: ModelSpec
    backend: str
    """Of Triton."""
    file_name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    max_batch: int


def export_triton(model: Path, repository: Path, settings: TritonSettings | None = None) -> tuple[Path, Path]:
    """Add a model to a repository, which is made where it is not there.

    Args:
        model: .onnx of ``blu export onnx``, or .engine of ``blu build-engine``.
        repository: folder; models that it already holds stay as they are.
        settings: how Triton runs it.

    Returns:
        The folders of the model that takes photos and of its network. They appear whole or not at all.

    Raises:
        ModelFileError: the model is missing, damaged, foreign, or nothing that Triton's backends run.
        UsageError: the repository holds a model of this name already, or a setting does not fit the model.
    """
    settings = settings or TritonSettings()
    network = _read_network(model, settings)
    name = settings.name or re.sub(r"[^A-Za-z0-9_.-]+", "_", model.stem).lstrip(".-") or "model"
    network_name = f"{name}_network"
    targets = repository / name, repository / network_name
    for target in targets:
        if target.exists():
            raise UsageError(f"{target} is there already.", "Choose another --name, or remove that folder.")
    repository.mkdir(parents=True, exist_ok=True)
    # Triton treats every folder of a repository as a model, except those whose names start with a dot.
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=repository) as temporary:
        made = Path(temporary, name), Path(temporary, network_name)
        _write_frontend(
            made[0], frontend_config(name, network_name, network.spec, settings, network.max_batch), network
        )
        _write_network(made[1], network_config(network_name, network, settings), network, model)
        for source, target in reversed(list(zip(made, targets, strict=True))):  # the network first: it is asked for
            source.rename(target)
    return targets


def _read_network(model: Path, settings: TritonSettings) -> Network:
    suffix = model.suffix.lower()
    if suffix == ".onnx":
        onnx = read_onnx(model)
        spec = spec_of(onnx, str(model))
        return Network(spec, "onnxruntime", "model.onnx", onnx.inputs, onnx.outputs, settings.max_batch or MAX_BATCH)
    if suffix != ".engine":
        raise ModelFileError(
            f"Triton runs .onnx and .engine files, not {model}.", f"Export it: blu export onnx --weights {model}"
        )
    if not model.is_file():
        raise ModelFileError(f"There is no model file {model}.", "Check the path.")
    sidecar = read_sidecar(model)
    sidecar.check_hash(model, model.read_bytes())
    if sidecar.builder != "tensorrt":
        raise ModelFileError(
            f"{model} was built by {sidecar.builder}, which Triton has no backend for.",
            "Build it with blu build-engine --builder tensorrt on a machine with the GPU, or export the .onnx file.",
        )
    batch = sidecar.batch
    if not batch.smallest == 1 < batch.largest:
        raise UsageError(
            f"{model} takes batches of {batch.smallest} to {batch.largest}; Triton's batches start at 1 and vary.",
            "Build it with: blu build-engine --batch 1,1,8",
        )
    if (settings.max_batch or 1) > batch.largest:
        raise UsageError(f"{model} takes batches of at most {batch.largest}, not {settings.max_batch}.")
    spec = sidecar.spec
    largest = settings.max_batch or batch.largest
    return Network(spec, "tensorrt", "model.plan", graph_inputs(spec), graph_outputs(spec), largest)


class Word(str):
    """A name of the schema, which is written without quotes."""

    __slots__ = ()


def network_config(name: str, network: Network, settings: TritonSettings) -> dict[str, Any]:
    """ModelConfig of the network; tensors are as the graph has them."""
    kind = "gpu" if network.backend == "tensorrt" else settings.kind
    delay = round(settings.batch_delay * 1e6)
    return {
        "name": name,
        "backend": network.backend,
        "max_batch_size": network.max_batch,
        "input": [_tensor(tensor) for tensor in network.inputs],
        "output": [_tensor(tensor) for tensor in network.outputs],
        "instance_group": [{"count": settings.instances, "kind": Word(KINDS[kind])}],
        "dynamic_batching": {"max_queue_delay_microseconds": delay} if delay else {},
        "model_warmup": [_warmup(network.spec, size) for size in sorted({1, network.max_batch})],
        "parameters": _parameters(spec=network.spec.to_json()),
    }


def frontend_config(
    name: str, network_name: str, spec: ModelSpec, settings: TritonSettings, max_batch: int
) -> dict[str, Any]:
    """ModelConfig of the Python model: what ``blu serve`` takes and gives."""
    return {
        "name": name,
        "backend": "python",
        "max_batch_size": 0,  # photos and results differ in size: the network behind it makes the batches
        "input": [{"name": PHOTO_INPUT, "data_type": Word(config_type("BYTES")), "dims": [1]}],
        "output": [
            {"name": output, "data_type": Word(config_type(kind)), "dims": shape}
            for output, (kind, shape) in PHOTO_OUTPUTS.items()
        ],
        "instance_group": [{"count": settings.frontends or max_batch, "kind": Word("KIND_CPU")}],
        "parameters": _parameters(
            network=network_name,
            spec=spec.to_json(),
            max_pixels=str(MAX_PHOTO_PIXELS),
            max_mask_bytes=str(MAX_MASK_BYTES),
        ),
    }


def _tensor(tensor: Tensor) -> dict[str, Any]:
    batch, *rest = tensor.shape
    if isinstance(batch, int):
        raise ModelFileError(
            f"{tensor.name} has a batch of {batch}, always; Triton's batches vary.", "Export the model again."
        )
    found: dict[str, Any] = {"name": tensor.name, "data_type": Word(_TYPES[tensor.dtype])}
    if not rest:  # Triton wants at least one dimension beside the batch
        return found | {"dims": [1], "reshape": {"shape": []}}
    return found | {"dims": [side if isinstance(side, int) else -1 for side in rest]}


def _warmup(spec: ModelSpec, batch: int) -> dict[str, Any]:
    canvas = {
        "data_type": Word("TYPE_UINT8"),
        "dims": [*(spec.largest_canvas or WARMUP_CANVAS), spec.image_channel_count],
        "random_data": True,
    }
    window = {"data_type": Word("TYPE_FP32"), "dims": [4], "input_data_file": "window"}
    return {
        "name": f"batch of {batch}",
        "batch_size": batch,
        "inputs": [{"key": "canvas", "value": canvas}, {"key": "window", "value": window}],
    }


def _parameters(**values: str) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": value}} for key, value in values.items()]


def _write_network(folder: Path, config: Mapping[str, Any], network: Network, model: Path) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "warmup").mkdir()
    shutil.copyfile(model, folder / "1" / network.file_name)
    height, width = network.spec.largest_canvas or WARMUP_CANVAS
    np.array([0, 0, height, width], "<f4").tofile(folder / "warmup" / "window")
    _write_description(folder, config, network.spec)


def _write_frontend(folder: Path, config: Mapping[str, Any], network: Network) -> None:
    package = resources.files("blu_export")
    held = folder / "1" / "blu_export"
    held.mkdir(parents=True)
    for module in HELD_MODULES:
        path = f"{module.replace('.', '/')}.py"
        (held / path).parent.mkdir(exist_ok=True)
        (held / path).write_bytes(package.joinpath(path).read_bytes())
    (folder / "1" / "model.py").write_bytes(package.joinpath("export", "triton_backend", "model.py").read_bytes())
    _write_description(folder, config, network.spec)


def _write_description(folder: Path, config: Mapping[str, Any], spec: ModelSpec) -> None:
    (folder / "config.pbtxt").write_text("\n".join(protobuf_text(config)) + "\n", encoding="utf-8")
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in spec.class_names), encoding="utf-8")


def protobuf_text(message: Mapping[str, Any]) -> list[str]:
    """Lines of a message in protobuf's text format: dicts are messages, lists repeated fields, Words enum values."""
    lines: list[str] = []
    for field, value in message.items():
        numbers = isinstance(value, list) and all(isinstance(item, int) for item in value)
        for item in [value] if numbers or not isinstance(value, list) else value:
            if isinstance(item, Mapping):
                lines += [f"{field} {{", *(f"  {line}" for line in protobuf_text(item)), "}"]
            else:
                lines.append(f"{field}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Word():
            return value
        case str():
            # JSON's escapes are protobuf's too, as long as characters beyond ASCII stay as they are.
            return json.dumps(value, ensure_ascii=False)
        case list():
            return f"[{', '.join(map(str, value))}]"
        case _:
            return str(value)
