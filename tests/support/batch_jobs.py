"""Photos of one color, and jobs with the fake model, in this process or in one of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blu_export.batch.job import BatchJob, BatchSettings, Report
from blu_export.batch.plan import Plan
from blu_export.batch.shard import read_rows
from blu_export.batch.sink import Sink

HERE = Path(__file__).parent
PATIENCE = 300
Color = tuple[int, int, int]


def write_photo(path: Path, color: Color | int) -> Path:
    """A photo of one color; of a gray level, its first detection has the score level / 255."""
    if isinstance(color, int):
        color = (color, color, color)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((24, 32, 3), color, np.uint8)).save(path)
    return path


def run(**settings: Any) -> Report:
    """A job in this process, with workers in theirs."""
    job = BatchJob(BatchSettings(**{"loader": "fake_runner:load", **settings, **_texts(settings)}))
    yielded = len(list(job.run()))
    assert yielded == job.total - job.finished
    assert job.report is not None
    return job.report


def _texts(settings: dict[str, Any]) -> dict[str, str]:
    return {name: str(settings[name]) for name in ("source", "sink")}


def start(**settings: Any) -> subprocess.Popen[str]:
    """The same as a process; it prints a line per photo."""
    given = json.dumps({**settings, **_texts(settings), "model": str(settings["model"])})
    return subprocess.Popen([sys.executable, HERE / "batch_fake.py", given], stdout=subprocess.PIPE, text=True)


def rows(sink: Path | str) -> dict[str, dict[str, Any]]:
    """All rows by photo; none may be there twice or be missing, by the sink's own plan."""
    place = Sink(str(sink))
    plan = Plan.read(place)
    found = [row for shard in plan.shards for row in read_rows(place, shard)]
    assert Counter(row["image"] for row in found) == Counter(plan.photos)
    return {row["image"]: row for row in found}


def check_levels(sink: Path | str, folder: Path, levels: list[int]) -> None:
    """Every photo of ``photos(*levels)`` has its own detections."""
    found = rows(sink)
    assert sorted(found) == [str(folder / f"{index:02d}.png") for index in range(len(levels))]
    for index, level in enumerate(levels):
        row = found[str(folder / f"{index:02d}.png")]
        assert row["error"] is None
        assert [each["score"] for each in row["detections"]] == pytest.approx([level / 255, level / 510], abs=1e-6)
