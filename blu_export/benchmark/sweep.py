"""What a limit of the box arithmetic costs and brings: the same subnetworks, composed again for each value.

``post_nms_rois_inference`` and ``pre_nms_limit`` trade average precision for time without training or exporting.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.benchmark.recompose import recompose
from blu_export.benchmark.timing import take_turns
from blu_export.data.dataset import Dataset
from blu_export.detector import Detector
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.errors import UsageError
from blu_export.evaluate.coco import Evaluator
from blu_export.evaluate.detect import detect
from blu_export.image import decode, mold
from blu_export.runtime.base import Runner
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

FIELDS = ("post_nms_rois_inference", "pre_nms_limit", "detection_max_instances")
"""Limits that are not part of the subnetworks."""
TIMED_PHOTOS = 4
AP = ("box_ap", "mask_ap")


def parse_sweep(text: str) -> tuple[str, list[int]]:
    """``post_nms_rois_inference=1000,500,300``.

    Raises:
        UsageError: no such field, or no whole numbers.
    """
    field, _, values = text.partition("=")
    if field not in FIELDS or not all(value.strip().isdecimal() for value in values.split(",")):
        raise UsageError(f"'{text}' is not a sweep.", f"Write FIELD=VALUE,VALUE with one of {', '.join(FIELDS)}.")
    return field, [int(value) for value in values.split(",")]


def sweep(
    path: Path,
    field: str,
    values: Sequence[int],
    dataset: Dataset | None,
    threads: int,
    repeats: int,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Time and average precision of a model for each value of a limit, in ONNX Runtime on the processor.

    Args:
        path: a portable file of ``blu export onnx``.
        field: one of FIELDS.
        dataset: annotated photos. The first TIMED_PHOTOS are timed, the values taking turns on them. None: the demo
            photo is timed, without average precision.

    Returns:
        ``{"field": …, "photos": N, "rows": [{"value", "network_s", "box_ap", "mask_ap"}, …]}``; N is 0 without photos
        that were judged.

    Raises:
        UsageError: a value is not possible, or the data set lacks classes of the model.
        ModelFileError: not such a file.
    """
    evaluator = None if dataset is None else Evaluator(dataset)
    photos: list[Any] = [embedded(DEMO_PHOTO)]
    rows = []
    with ExitStack() as opened:
        runners = [
            opened.enter_context(OnnxRuntimeRunner(recompose(path, **{field: value}), "cpu", threads))
            for value in values
        ]
        spec = runners[0].spec
        if dataset is not None:
            dataset = dataset.with_channels(spec.image_channel_count)
            photos = [dataset.load_image(index) for index in range(min(TIMED_PHOTOS, len(dataset)))]
        molded = [mold(decode(photo, channels=spec.image_channel_count), spec) for photo in photos]

        def timed(runner: Runner) -> Callable[[], object]:
            return lambda: [runner.run(each.canvas[None], each.window[None]) for each in molded]

        say(f"timing {field} on {len(molded)} photos")
        turns = take_turns({str(v): timed(r) for v, r in zip(values, runners, strict=True)}, repeats, 1)
        for value, runner in zip(values, runners, strict=True):
            row = {"value": value, "network_s": float(np.median(turns.seconds[str(value)])) / len(molded)}
            if dataset is not None and evaluator is not None:
                say(f"average precision on {len(dataset)} photos: {field}={value}")
                found = evaluator(list(chain.from_iterable(detect(Detector(runner), dataset)))).values
                row |= {name: found[name] for name in AP}
            rows.append(row)
    return {"field": field, "photos": len(dataset or ()), "spread": turns.spread, "rows": rows}


def sweep_table(result: dict[str, Any]) -> str:
    """As Markdown."""
    lines = [f"| {result['field']} | network | box AP | mask AP |", "|---|---|---|---|"]
    for row in result["rows"]:
        cells = [f"{1000 * row['network_s']:.1f} ms", *(f"{row[name]:.4f}" if name in row else "–" for name in AP)]
        lines.append(f"| {row['value']} | {' | '.join(cells)} |")
    return "\n".join(lines)
