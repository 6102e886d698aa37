"""What ``blu infer`` prints on stdout: a table per photo, or a line if there are many."""

from __future__ import annotations

from collections import Counter

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from blu_export.cli.common import printable
from blu_export.detections import Detections

DROPPED = ("of photo", "mask px", "y", "x", "height", "width")
"""Columns that narrow terminals lack, in the order in which they go."""


def print_table(console: Console, name: str, found: Detections, note: str = "") -> None:
    """Class, score, box and mask area of every detection; ``note`` ends the title."""
    height, width = found.image_size
    console.print(Text(printable(f"{name}  {width}×{height}  {len(found)} found{note}")), soft_wrap=True)
    if not len(found):
        return
    columns = {"class": [printable(found.class_names[each]) for each in found.class_ids.tolist()]}
    if found.track_ids is not None:
        columns["track"] = ["–" if each < 1 else str(each) for each in found.track_ids.tolist()]
    columns["score"] = [f"{score:.3f}" for score in found.scores.tolist()]
    y1, x1, y2, x2 = found.rois.T
    for heading, values in (("x", x1), ("y", y1), ("width", x2 - x1), ("height", y2 - y1), ("mask px", found.areas)):
        columns[heading] = list(map(str, values.tolist()))
    columns["of photo"] = [f"{100 * area / (height * width):.1f} %" for area in found.areas.tolist()]
    for heading in DROPPED:
        if _width(columns) <= console.width:
            break
        del columns[heading]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, cells))
    console.print(table)


def _width(columns: dict[str, list[str]]) -> int:
    """Characters of the table: the widest cell of each column and three between."""
    from rich.cells import cell_len

    return sum(max(map(cell_len, [heading, *cells])) + 3 for heading, cells in columns.items()) + 2


def print_line(console: Console, name: str, found: Detections, note: str = "") -> None:
    """``street.jpg  832×550  3 found: 2 shoes, 1 coat``."""
    height, width = found.image_size
    counts = Counter(found.class_names[each] for each in found.class_ids.tolist())
    what = ", ".join(f"{count} {each}" for each, count in counts.most_common())
    line = f"{name}  {width}×{height}  {len(found)} found{': ' if what else ''}{what}{note}"
    console.print(Text(printable(line)), soft_wrap=True)
