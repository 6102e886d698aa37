"""Memory: what a training step will take, what there is, and settings that fit.

TensorFlow asks for memory until the system ends the process, minutes into a run; so the question is put before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import keras
import tensorflow as tf

from blu_export.errors import UsageError
from blu_export.model.mask_rcnn import MaskRCNN
from blu_export.spec import SIZE_MULTIPLE
from blu_export.train.config import TrainConfig
from blu_export.train.schedule import learns

DEFAULT_BATCH = 4
SMALLEST_CANVAS = 128
SAFE_SHARE = 0.75
"""Of the free memory that an estimate may reach: decoded photos take up to a quarter."""

_BYTES = 4
_BASE = 800 << 20
"""TensorFlow's code and threads, bytes."""
_TRUNK = 0.6
"""Share of the outputs of the trunk's layers that is kept for the gradient: 0.35 to 0.6 was measured, for normalization
and activation are fused with their convolution."""
_HEADS = 1.5
"""The same of the heads, where the gradient of the pooled features adds to it."""
_PASSING = 2
"""Largest outputs that are alive at once beside those."""
_TARGETS = 6
"""Tables of anchors times objects that a sample's targets take while they are made."""
_STEP_COPIES = 2
"""Copies of the trained weights that a step makes beside gradients and optimizer's state."""


def fit_memory(model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig, replicas: int = 1) -> TrainConfig:
    """The settings, with a batch where they name none.

    Args:
        model: any canvas.
        canvas: (height, width) of the training crop.
        config: the settings; ``batch`` 0 is replaced.
        replicas: devices that share the batch.

    Raises:
        UsageError: the settings do not fit in memory; the message names some that do.
    """
    free, parts = free_memory(replicas), replicas * config.accumulate
    if not config.batch:
        batches = [n for n in range(max(parts, DEFAULT_BATCH // parts * parts), 0, -parts)]
        fitting = (n for n in batches if fits(model, canvas, replace(config, batch=n), replicas, free))
        config = replace(config, batch=next(fitting, batches[-1]))
    if not fits(model, canvas, config, replicas, free):
        needed = step_memory(model, canvas, config, replicas)
        other = next(_smaller(model, canvas, config, replicas, free), None)
        fix = "Train a smaller backbone, fewer layers, or on another machine."
        if other is not None:
            fix = f"These settings fit: --batch {other.batch} --canvas {'x'.join(map(str, other.canvas))}"
        raise UsageError(
            f"Training on {canvas[0]}x{canvas[1]} pixels with a batch of {config.batch} takes about "
            f"{needed / 1e9:.0f} GB of memory, and {free / 1e9:.0f} GB are free.",
            fix,
        )
    return config


def fits(model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig, replicas: int, free: float) -> bool:
    """Whether a step with these settings fits into ``free`` bytes."""
    return step_memory(model, canvas, config, replicas) <= SAFE_SHARE * free


def _smaller(
    model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig, replicas: int, free: float
) -> Iterator[TrainConfig]:
    """Settings that fit: smaller batches first, then smaller canvases of about the same shape."""
    parts = replicas * config.accumulate
    sides = range(max(canvas), SMALLEST_CANVAS - 1, -SIZE_MULTIPLE)
    for side in sides:
        shrunk = tuple(
            max(SIZE_MULTIPLE, round(s * side / max(canvas) / SIZE_MULTIPLE) * SIZE_MULTIPLE) for s in canvas
        )
        size = (shrunk[0], shrunk[1])
        batch = config.batch
        while batch >= parts:
            smaller = replace(config, batch=batch, canvas=size)
            if fits(model, size, smaller, replicas, free):
                yield smaller
            batch = batch // 2 // parts * parts


def free_memory(replicas: int = 1) -> float:
    """Bytes that each device has for training: the memory of its GPU, else its share of the host's."""
    if tf.config.list_physical_devices("GPU"):
        from tensorflow.python.client import device_lib

        return float(min(d.memory_limit for d in device_lib.list_local_devices() if d.device_type == "GPU"))
    return host_memory() / replicas


def host_memory(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that this process can still get; infinite where the system does not tell.

    The least of what the machine has free and what the container's limit leaves.
    """
    found = [math.inf]
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),  # cgroup v2
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            stat = (cgroup / limit).with_name("memory.stat").read_text().split()
            freed = int(stat[stat.index(cache) + 1])
            found.append(int((cgroup / limit).read_text()) - int((cgroup / used).read_text()) + freed)
        except (OSError, ValueError):
            continue
    return max(0.0, min(found))


def step_memory(model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig, replicas: int = 1) -> float:
    """Bytes one device needs to train ``config``'s most expensive stage on a canvas (height, width); an estimate."""
    local = config.batch // (replicas * config.accumulate)
    width = 1.0 if config.precision == "float32" else 0.5
    largest = max(
        _weights(model, config, layers) + local * width * _activations(model, canvas, config, layers)
        for layers in {stage.layers for stage in config.stages}
    )
    samples = config.workers * len(model.anchors(canvas)) * config.targets.max_gt_instances * _TARGETS * _BYTES
    return _BASE + largest + samples


def _weights(model: MaskRCNN, config: TrainConfig, layers: str) -> float:
    """Weights, those of the validated copy, and gradients and optimizer's state of what learns."""
    sizes = {name: layer.count_params() * _BYTES for name, layer in model.learned_layers().items()}
    trained = sum(size for name, size in sizes.items() if learns(name, layers))
    slots = (2 if config.optimizer == "adamw" else 1) + (config.ema > 0)
    return 2 * sum(sizes.values()) + (1 + slots + _STEP_COPIES) * trained


def _activations(model: MaskRCNN, canvas: tuple[int, int], config: TrainConfig, layers: str) -> float:
    """What one photo's layers put out and keep for the gradient."""
    trunk = model.trunk
    names = [layer.name for layer in trunk.layers]
    outputs = keras.Model(trunk.inputs, [layer.output for layer in trunk.layers])
    shapes = outputs.compute_output_spec(keras.KerasTensor((1, *canvas, model.spec.image_channel_count)))
    sizes = [_size(shape) for shape in shapes]
    trained = {name for name in model.learned_layers() if learns(name, layers)}
    first = next(n for n, name in enumerate(names) if name in trained)
    heads = config.targets.rois_per_image * _size(model.box_head.input) * 2
    heads += config.targets.positive_rois * sum(_size(layer.output) for layer in model.mask_head.layers)
    return _TRUNK * sum(sizes[first:]) + _HEADS * heads + _PASSING * max(sizes)


def _size(tensor: keras.KerasTensor) -> float:
    return math.prod(side or 1 for side in tensor.shape) * _BYTES
