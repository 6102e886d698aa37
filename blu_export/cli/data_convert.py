"""``blu data convert``: annotations of any tool as COCO files or YOLO segments."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from blu_export.cli.common import command_app, progress, say, show_log, wrote
from blu_export.cli.data_check import parts_of, read_options
from blu_export.cli.options import ExifOption, KeepEmptyOption, StrictOption
from blu_export.errors import UsageError

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset

app = command_app()

PhotosOption = Annotated[str, typer.Option(help="copy, link (hard links) or none: photos stay and are named by path.")]


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Folder, bucket (s3://…) or file of annotations.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    to: Annotated[str, typer.Option(help="coco or yolo.")] = "coco",
    split: Annotated[str | None, typer.Option(help="train or val. Default: every part that is there.")] = None,
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos.")] = None,
    photos: PhotosOption = "copy",
    strict: StrictOption = False,
    exif: ExifOption = "auto",
    keep_empty_classes: KeepEmptyOption = False,
) -> None:
    """Write annotations of VIA, CVAT, Darwin, LabelMe, YOLO, VOC, mask pictures or any COCO dialect as COCO or YOLO.

    \b
    blu data convert via_project.json coco/
    blu data convert labelme/ coco/ --photos link
    blu data convert coco/ yolo/ --to yolo
    """
    from blu_export.data.load import load_dataset

    show_log()
    options = read_options(images, None, strict, exif, keep_empty_classes)
    sets = {part: load_dataset(source, part, options=options, progress=progress) for part in parts_of(source, split)}
    write_parts(sets, out, to, photos)


def write_parts(sets: dict[str, Dataset], out: Path, to: str, photos: str) -> None:
    """Write the parts of a data set, and say what was written.

    Raises:
        UsageError: there is no such format, or no such treatment of photos.
    """
    from blu_export.data.classes import match_classes
    from blu_export.data.write import WRITERS, PhotoPolicy

    if to not in WRITERS:
        raise UsageError(f"There is no format '{to}'.", f"--to is {' or '.join(WRITERS)}.")
    if photos not in get_args(PhotoPolicy):
        raise UsageError(f"There is no --photos {photos}.", "Write copy, link or none.")
    first = next(iter(sets.values()))
    files: dict[Path, None] = {}
    left_out: Counter[str] = Counter()
    for part, dataset in sets.items():
        # YOLO has one list of classes for all parts.
        written = WRITERS[to](
            match_classes(dataset, first.class_names) if to == "yolo" else dataset,
            part,
            out,
            cast(PhotoPolicy, photos),
            progress,
        )
        say(f"{part}: {written.photos} photos, {written.objects} objects")
        files |= dict.fromkeys(written.files)
        left_out += written.left_out
    for what, count in left_out.items():
        say(f"left out: {count} {what}")
    for path in files:
        wrote(path)
    say(f"next: blu data check {out}")
