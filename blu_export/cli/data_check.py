"""``blu data check``: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, printable, progress, say, show_log, stdout, wrote
from blu_export.cli.options import (
    BitsOption,
    CachedOption,
    ExifOption,
    JsonOption,
    KeepEmptyOption,
    MaxPixelsOption,
    StrictOption,
)
from blu_export.errors import EXIT_BAD_INPUT, UsageError

if TYPE_CHECKING:
    from blu_export.data.check import Report
    from blu_export.data.dataset import Dataset
    from blu_export.data.options import ReadOptions

app = command_app()

EXAMPLES_SHOWN = 5
"""Problems of a kind that are listed for people; --json has them all."""


@app.command()
def check(
    dataset: Annotated[
        str, typer.Argument(help="Folder, bucket (s3://…) or file of annotations, in any format of docs/data.md.")
    ],
    split: Annotated[str | None, typer.Option(help="train or val. Default: every part that is there.")] = None,
    images: Annotated[
        str | None, typer.Option(help="Folder or URL of the photos, where they are not in the usual place.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Look at only the first N photos of each part.")] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Contact sheet; with two parts, one for each: NAME-train, NAME-val.")
    ] = Path("data-check.jpg"),
    sheet: Annotated[bool, typer.Option("--sheet/--no-sheet", help="Write the contact sheet.")] = True,
    save: Annotated[Path | None, typer.Option(help="Write the whole report, every problem in it, as JSON.")] = None,
    strict: StrictOption = False,
    exif: ExifOption = "auto",
    keep_empty_classes: KeepEmptyOption = False,
    max_pixels: MaxPixelsOption = None,
    bits: BitsOption = None,
    cached: CachedOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read every photo and mask of a data set; count, measure, and list what is wrong.

    Errors cost a photo (missing, broken, of another size than annotated): exit code 3. Warnings cost an
    object or are repaired (masks that are empty or cannot be decoded, boxes far from their mask, …).
    A contact sheet shows annotated photos of every class.

    \b
    blu data check photos/
    blu data check s3://bucket/deepfashion2 --split val --limit 500
    blu data check instances_train.json --images photos/ --out sheet.jpg --json
    """
    from blu_export.data.check import check as read_all
    from blu_export.data.load import load_dataset
    from blu_export.data.storage import open_storage
    from blu_export.files import atomic_write

    show_log()
    options = read_options(images, limit, strict, exif, keep_empty_classes, max_pixels=max_pixels, bits=bits)
    parts = parts_of(dataset, split)
    parallel = max(os.cpu_count() or 1, open_storage(dataset).parallel)
    reports: dict[str, Report] = {}
    for part in parts:
        data = load_dataset(dataset, part, cached=cached, progress=progress, options=options)
        reports[part] = read_all(data, parallel, partial(progress, total=len(data)))
        if not as_json:
            _print(reports[part], part if len(parts) > 1 else "")
        if sheet:
            _write_sheet(out if len(parts) == 1 else out.with_stem(f"{out.stem}-{part}"), data)
    values = {part: report.to_json() for part, report in reports.items()}
    results = json.dumps(values if len(parts) > 1 else values[parts[0]], indent=2)
    if as_json:
        print(results)
    if save is not None:
        with atomic_write(save) as temporary:
            temporary.write_text(results + "\n", encoding="utf-8")
        wrote(save)
    for part, report in reports.items():
        if "nothing to train on" in report.counts:
            say(f"WARNING: there is nothing to train on in {report.name} ({part}): no object has a mask.")
    if errors := sum(report.errors for report in reports.values()):
        say(f"{errors} errors: training leaves these photos out, and stops where they are more than 1 %.")
        raise typer.Exit(EXIT_BAD_INPUT)


def read_options(
    images: str | None,
    limit: int | None,
    strict: bool,
    exif: str,
    keep_empty_classes: bool,
    *,
    max_pixels: int | None = None,
    bits: int | None = None,
) -> ReadOptions:
    """The options of reading annotations that commands share.

    Raises:
        UsageError: there is no such treatment of EXIF.
    """
    from blu_export.data.options import Decoding, ReadOptions

    if exif not in ("auto", "apply", "ignore"):
        raise UsageError(f"There is no --exif {exif}.", "Write auto, apply or ignore.")
    decoding = Decoding(max_pixels, bits)
    return ReadOptions(images, limit, strict, keep_empty_classes, exif, decoding)  # type: ignore[arg-type]


def parts_of(dataset: str, split: str | None) -> list[str]:
    """The parts to look at."""
    from blu_export.data.load import SPLITS, has_split

    if split is not None and split not in SPLITS:
        raise UsageError(f"There is no part '{split}'.", f"--split is {' or '.join(SPLITS)}.")
    return [split] if split else [part for part in SPLITS if has_split(dataset, part)] or [SPLITS[0]]


def _print(report: Report, part: str) -> None:
    """The report for people."""
    from rich.table import Table

    values, console = report.to_json(), stdout()
    heights, widths, sizes = (values[name] for name in ("photo_height", "photo_width", "object_sizes"))
    lines = [
        f"{report.name}{f' ({part})' if part else ''}: {values['photos']} photos, "
        f"{values['photos_without_objects']} of them without objects; "
        f"{values['objects']} objects, {values['crowds']} crowd regions",
        f"photos   {widths['min']} to {widths['max']} wide, {heights['min']} to {heights['max']} high; "
        f"median {widths['median']:g}x{heights['median']:g}",
        f"objects  {sizes['small']} small (under 32² pixels), {sizes['medium']} medium, "
        f"{sizes['large']} large (over 96²)",
    ]
    print(printable("\n".join(lines)) + "\n")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("class")
    for name in ("objects", "photos", "small", "medium", "large", "median area"):
        table.add_column(name, justify="right")
    for row in values["classes"]:
        median = "" if row["median_area"] is None else f"{row['median_area']:.0f}"
        numbers = (str(row[name]) for name in ("objects", "photos", "small", "medium", "large"))
        table.add_row(printable(row["name"]), *numbers, median)
    console.print(table, markup=False)
    print("\n" + printable("\n".join(_problem_lines(report))) + "\n")


def _problem_lines(report: Report) -> list[str]:
    from blu_export.data.problems import ERRORS, WARNINGS

    of_kind: defaultdict[str, list[Any]] = defaultdict(list)
    for problem in report.problems:
        of_kind[problem.kind].append(problem)
    lines = []
    for level, kinds in (("error", ERRORS), ("warning", WARNINGS)):
        for kind, meaning in kinds.items():
            found = of_kind[kind]
            if found:
                lines.append(f"{level}: {kind} ×{len(found)} ({meaning})")
                lines += [
                    f"  {problem.detail}" if problem.uri in problem.detail else f"  {problem.uri}: {problem.detail}"
                    for problem in found[:EXAMPLES_SHOWN]
                ]
                if len(found) > EXAMPLES_SHOWN:
                    lines.append(f"  … and {len(found) - EXAMPLES_SHOWN} more")
    return lines or ["nothing wrong"]


def _write_sheet(path: Path, data: Dataset) -> None:
    from PIL import Image

    from blu_export.data.check import sheet
    from blu_export.files import atomic_write

    if path.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
        raise UsageError(f"{path} is not a picture.", "Give --out a name that ends in .jpg, .png or .webp.")
    picture = sheet(data)
    if picture is None:
        say("no contact sheet: there is no photo with objects that can be read")
        return
    with atomic_write(path) as temporary:
        Image.fromarray(picture).save(temporary, quality=90)
    wrote(path)
