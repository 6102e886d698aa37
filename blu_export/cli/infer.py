"""``blu infer``: detect on photos, folders, standard input and videos."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blu_export.cli.common import be_quiet, command_app, say, show_log
from blu_export.cli.infer_run import Inference, Wanted
from blu_export.cli.options import (
    BatchOption,
    BitsOption,
    ConfigOption,
    DeviceOption,
    IgnoreLayersOption,
    MaxPixelsOption,
    ModelOption,
    NmsOption,
    OverlapOption,
    PrecisionOption,
    RuntimeOption,
    SettingsOption,
    ThreadsOption,
    TileOption,
)
from blu_export.errors import EXIT_BAD_INPUT, ImageError, UsageError

if TYPE_CHECKING:
    pass

app = command_app()

FORMATS = (
    "table, overlay, json, coco, npz, csv, mask, crop, cutout, polygons (GeoJSON), yolo, labelme, voc"  # see results
)
MANY_PHOTOS = 16
"""From this many photos on, photos per second count for more than the time of one: see load(throughput=…)."""
TABLES = 4
"""With more photos than this, each has a line instead of a table, unless tables were asked for."""


@app.command()
def infer(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Photos, folders, globs, videos, or - for standard input.")
    ],
    model: ModelOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files that the formats write.")] = Path("out"),
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            "-f",
            help=f"{FORMATS}; may be given several times. Default: table and overlay on a terminal, table elsewhere.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per photo on stdout.")] = False,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Drop detections below this score. Default: files and --json hold all that the model gives, "
            "tables and pictures show those of 0.5 and more.",
        ),
    ] = None,
    class_names: Annotated[
        list[str] | None, typer.Option("--class", help="Keep only this class; may be given several times.")
    ] = None,
    tile: TileOption = None,
    overlap: OverlapOption = 0.2,
    nms: NmsOption = None,
    track: Annotated[
        bool, typer.Option("--track", help="Track objects through a video: the same number on all frames.")
    ] = False,
    stride: Annotated[int, typer.Option(min=1, help="Use every Nth frame of a video.")] = 1,
    bits: BitsOption = None,
    max_pixels: MaxPixelsOption = None,
    batch: BatchOption = 1,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only results and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Always say what was chosen and why.")] = False,
) -> None:
    """Find objects on photos, in folders, on videos, streams (rtsp://…) or a camera (0).

    A photo that cannot be read is reported and skipped; the exit code is then 3.

    \b
    blu infer street.jpg
    blu infer photos/ --format overlay --format coco --out found
    blu infer 'photos/*.jpg' --json --class dress --min-score 0.9
    blu infer aerial.jpg --tile 1024
    """
    from blu_export.detections import Detections
    from blu_export.detector import load
    from blu_export.results import FORMATS as KNOWN
    from blu_export.results.base import SHOWN_SCORE
    from blu_export.sources import IMAGE_SUFFIXES, find_images
    from blu_export.tiles import Tiling
    from blu_export.video import VIDEO_SUFFIXES, is_live

    chosen = list(dict.fromkeys(formats or _default_formats(as_json)))
    if unknown := [name for name in chosen if name not in ("table", *KNOWN)]:
        raise UsageError(f"There is no format '{unknown[0]}'.", f"Formats are {', '.join(('table', *KNOWN))}.")
    tiling = None if tile is None else Tiling(tile, overlap)
    if quiet:
        be_quiet()
    show_log(once=not verbose)
    passed_over: Counter[str] = Counter()
    streams = [Path(image) for image in images if is_live(image)]
    files = [image for image in images if not is_live(image)]
    paths = streams + find_images(files, IMAGE_SUFFIXES | VIDEO_SUFFIXES, skip=out, passed_over=passed_over)
    if passed_over:
        counts = ", ".join(f"{count} {suffix or 'without a suffix'}" for suffix, count in passed_over.most_common())
        say(f"{passed_over.total()} files skipped: {counts}")
    if not paths:
        raise UsageError(f"There are no photos in {', '.join(images)}.", "Name photos, videos, or folders of them.")
    total = _total(paths, stride)
    many = batch == 1 and (total is None or total >= MANY_PHOTOS)
    detector = load(
        model,
        runtime=runtime,
        precision=precision,
        device=device,
        threads=threads,
        throughput=many,
        config=config,
        settings=settings or (),
        ignore_layers=ignore_layers or (),
    )
    detector.max_pixels, detector.bits = max_pixels or detector.max_pixels, bits
    detector.min_score = min_score or 0.0
    Detections.empty((1, 1), detector.spec.class_names).filter(0.0, class_names)  # unknown classes: before the work
    wanted = Wanted(
        formats=chosen,
        as_json=as_json,
        classes=class_names,
        shown_score=SHOWN_SCORE if min_score is None else min_score,
        out=out,
        tables=bool(formats) or (total is not None and total <= TABLES),
        tiling=tiling,
        track=track,
        nms=nms,
        stride=stride,
        verbose=verbose,
    )
    if Inference(detector, paths, total, wanted).run(batch):
        raise typer.Exit(EXIT_BAD_INPUT)


def _default_formats(as_json: bool) -> list[str]:
    """Files are written without being asked for only on an interactive terminal."""
    if as_json:
        return []
    return ["table", "overlay"] if sys.stdout.isatty() else ["table"]


def _total(paths: list[Path], stride: int) -> int | None:
    """Photos and frames to come; None where a video does not say how many it has."""
    from blu_export.video import VIDEO_SUFFIXES, Video, is_live

    total = 0
    for path in paths:
        if is_live(path):
            return None
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            total += 1
            continue
        try:
            with Video(path) as video:
                if video.expected is None:
                    return None
                total += -(-video.expected // stride)
        except ImageError:  # told when its turn comes
            total += 1
    return total
