"""The shards of a job in the formats of ``results``, beside the Parquet files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from blu_export.batch.photos import read_photo
from blu_export.batch.plan import Plan
from blu_export.batch.process import Detecting
from blu_export.batch.shard import Summary, read_rows
from blu_export.batch.sink import SCRATCH_PREFIX, Sink
from blu_export.detections import Detections
from blu_export.errors import BluError
from blu_export.image import MAX_PIXELS, decode
from blu_export.results import FORMATS
from blu_export.results.base import SHOWN_SCORE, PhotoFormat, Result, SetFormat
from blu_export.results.folder import Stems
from blu_export.spec import ModelSpec


def write_format(sink: Sink, plan: Plan, summary: Summary, name: str, detecting: Detecting) -> str:
    """Write all photos in a format: one file ``_detections.…``, or a folder ``_NAME`` of files for each photo.

    Readers of Parquet folders skip names that begin with an underscore. Photos are read once more for formats that
    draw on them, as they were for the model. Photos that failed are left out; their rows say why.

    Returns:
        Path or URL of the file or folder.
    """
    form = FORMATS[name]()
    if isinstance(form, SetFormat):
        return _write_set(sink, plan, summary, form, detecting)
    assert isinstance(form, PhotoFormat)
    stems, folder = Stems(), f"_{name}"
    for result in _results(sink, plan, summary, form.for_people, detecting):
        stem = stems.of(result.name)
        for suffix, content in form.files(result):
            sink.write(f"{folder}/{stem}{suffix}", content)
    for file, content in form.closing(summary.class_names):
        sink.write(f"{folder}/{file}", content)
    return sink.path(folder)


def _write_set(sink: Sink, plan: Plan, summary: Summary, form: SetFormat, detecting: Detecting) -> str:
    name = f"_{form.file_name}"
    with tempfile.TemporaryDirectory(prefix=SCRATCH_PREFIX, dir=sink.scratch()) as folder:
        path = Path(folder, name)
        with path.open("w", encoding="utf-8", newline=form.newline) as file:
            file.write(form.start())
            for result in _results(sink, plan, summary, form.for_people, detecting):
                file.write(form.add(result))
            file.write(form.end(summary.class_names))
        sink.upload(path, name)
    return sink.path(name)


def _results(sink: Sink, plan: Plan, summary: Summary, for_people: bool, detecting: Detecting) -> Iterator[Result]:
    """Every photo that was read, with its pixels where people are to see it."""
    pixels = partial(
        decode,
        max_pixels=detecting.max_pixels or MAX_PIXELS,
        bits=detecting.bits,
        channels=ModelSpec.from_json(summary.spec).image_channel_count,
    )
    for shard in plan.shards:
        for row in read_rows(sink, shard):
            if row["error"] is not None:
                continue
            found = Detections.from_json(_as_json(row, summary.class_names))
            if not for_people:
                yield Result(found, row["image"])
                continue
            source = read_photo(row["image"])
            if isinstance(source, BluError):
                raise source
            yield Result(found.filter(plan.min_score or SHOWN_SCORE), row["image"], image=pixels(source))


def _as_json(row: dict[str, Any], class_names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "image_size": [row["height"], row["width"]],
        "class_names": list(class_names),
        "detections": row["detections"],
    }
