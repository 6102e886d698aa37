"""CSV: one line per instance."""

from __future__ import annotations

import csv
import io
from typing import Any

from blu_export.results.base import Result, SetFormat

COLUMNS = ("image", "frame", "instance", "track", "class_id", "class", "score", "x", "y", "width", "height", "area")
"""Boxes and areas are in pixels; frame and track are empty where there are none."""


def rows(result: Result) -> list[list[Any]]:
    """The lines of one photo, by COLUMNS."""
    found = result.found
    tracks = [""] * len(found) if found.track_ids is None else found.track_ids.tolist()
    lines = []
    for index, (area, track) in enumerate(zip(found.areas.tolist(), tracks, strict=True)):
        y1, x1, y2, x2 = found.rois[index].tolist()
        class_id = int(found.class_ids[index])
        lines.append([
            result.name, "" if result.frame is None else result.frame, index + 1, track,
            class_id, found.class_names[class_id], f"{found.scores[index]:.6f}",
            x1, y1, x2 - x1, y2 - y1, area,
        ])  # fmt: skip
    return lines


class CsvFormat(SetFormat):
    """detections.csv."""

    suffix = ".csv"
    file_name = "detections.csv"
    newline = ""

    def start(self) -> str:
        """See SetFormat."""
        return _text([list(COLUMNS)])

    def add(self, result: Result) -> str:
        """See SetFormat."""
        return _text(rows(result))

    def end(self, class_names: tuple[str, ...]) -> str:
        """See SetFormat."""
        return ""


def _text(lines: list[list[Any]]) -> str:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
