"""``blu data split``: a data set divided into parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blu_export.cli.common import command_app, progress, say, show_log
from blu_export.cli.data_check import read_options
from blu_export.cli.data_convert import PhotosOption, write_parts
from blu_export.cli.options import ExifOption, StrictOption
from blu_export.errors import UsageError

app = command_app()


@app.command()
def split(
    source: Annotated[str, typer.Argument(help="Folder, bucket (s3://…) or file of annotations.")],
    out: Annotated[Path, typer.Argument(help="Folder to write: instances_train.json, instances_val.json, …")],
    val: Annotated[float, typer.Option(min=0, max=1, help="Share of the photos for validation.")] = 0.2,
    test: Annotated[float, typer.Option(min=0, max=1, help="Share of the photos for a test set.")] = 0.0,
    group: Annotated[
        str | None,
        typer.Option(help="Photos that stay together: folder, or a regular expression such as '(patient[0-9]+)_'."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed: another number gives another division.")] = 0,
    part: Annotated[str, typer.Option(help="Which part of the source is divided: train or val.")] = "train",
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos.")] = None,
    photos: PhotosOption = "none",
    strict: StrictOption = False,
    exif: ExifOption = "auto",
) -> None:
    """Divide a data set into parts: groups stay together, every class goes to all parts alike.

    The same source, shares and seed give the same parts.

    \b
    blu data split annotations.json parts/
    blu data split labelme/ parts/ --val 0.1 --test 0.1 --group folder
    """
    from blu_export.data.load import SPLITS, load_dataset
    from blu_export.data.split import split_dataset

    if part not in SPLITS:
        raise UsageError(f"There is no part '{part}'.", f"--part is {' or '.join(SPLITS)}.")
    show_log()
    options = read_options(images, None, strict, exif, keep_empty_classes=False)
    dataset = load_dataset(source, part, options=options, progress=progress)
    shares = {name: share for name, share in (("train", 1 - val - test), ("val", val), ("test", test)) if share}
    parts = split_dataset(dataset, shares, group, seed)
    names = dataset.class_names
    for name, divided in parts.items():
        counts = [0] * len(names)
        for record in divided.records:
            for category in {annotation.category for annotation in record.annotations}:
                counts[category] += 1
        shown = ", ".join(f"{names[index]} {counts[index]}" for index in range(1, len(names)))
        say(f"{name}: {len(divided)} photos, of them with {shown}")
    write_parts(parts, out, "coco", photos)
