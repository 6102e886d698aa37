"""``blu infer``: detect on photos, folders, standard input and videos."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blu_export.cli.common import (
    BitsOption,
    ConfigOption,
    DeviceOption,
    IgnoreLayersOption,
    MaxPixelsOption,
    ModelOption,
    PrecisionOption,
    RuntimeOption,
    SettingsOption,
    ThreadsOption,
    be_quiet,
    command_app,
    complain,
    progress,
    say,
    show_log,
    stdout,
    wrote,
)
from blu_export.errors import EXIT_BAD_INPUT, BluError, ImageError, UsageError

if TYPE_CHECKING:
    from blu_export.detections import Detections
    from blu_export.detector import Detector, Photo
    from blu_export.results.base import Result
    from blu_export.results.folder import Stems, Writer
    from blu_export.sources import Input
    from blu_export.tiles import Tiling
    from blu_export.tracks import Tracker

app = command_app()

FORMATS = (
    "table, overlay, json, coco, npz, csv, mask, crop, cutout, polygons (GeoJSON), yolo, labelme, voc"  # see results
)
MANY_PHOTOS = 16
"""From so many on, photos a second count for more than the time of one: see load(throughput=…)."""
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
        list[str] | None, typer.Option("--class", help="Keep this class only; may be given several times.")
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(help="Look at each photo in tiles of so many pixels too, for things that are small on it."),
    ] = None,
    overlap: Annotated[float, typer.Option(help="Share of a tile that its neighbor sees as well.")] = 0.2,
    nms: Annotated[
        float | None,
        typer.Option(
            "--nms-across-classes",
            metavar="IOU",
            min=0,
            max=1,
            help="Drop a detection whose box has an IoU above this with a better one's, of whatever class.",
        ),
    ] = None,
    track: Annotated[
        bool, typer.Option("--track", help="Number the things of a video, the same on all frames.")
    ] = False,
    stride: Annotated[int, typer.Option(min=1, help="Of a video, every so many frames one.")] = 1,
    bits: BitsOption = None,
    max_pixels: MaxPixelsOption = None,
    batch: Annotated[int, typer.Option(min=1, help="Photos or tiles that go through the network at once.")] = 1,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Results and errors alone.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say every time what was chosen and why.")] = False,
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
        say(f"{passed_over.total()} files passed over: {counts}")
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
    """A file is written unasked only where somebody sits and reads that it was."""
    if as_json:
        return []
    return ["table", "overlay"] if sys.stdout.isatty() else ["table"]


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    formats: list[str]
    as_json: bool
    classes: list[str] | None
    shown_score: float
    out: Path
    tables: bool
    tiling: Tiling | None
    track: bool
    nms: float | None
    stride: int
    verbose: bool


class Inference:
    """One run of the command."""

    def __init__(self, detector: Detector, paths: list[Path], total: int | None, wanted: Wanted) -> None:
        self.detector, self.paths, self.total, self.wanted = detector, paths, total, wanted
        self.done = self.failures = self.windows = 0
        self._trackers: dict[Path, Tracker] = {}
        self._console = stdout()

    def run(self, batch: int) -> int:
        """Detect on everything; returns the number of photos that failed."""
        from blu_export.results.folder import Stems, open_writer

        stems = Stems()
        under_way: deque[Input] = deque()

        def sources() -> Iterator[object]:
            for item in self._inputs():
                under_way.append(item)
                yield item.source

        start = time.perf_counter()
        with ExitStack() as stack:
            names = self.detector.spec.class_names
            writers: list[Writer] = [
                stack.enter_context(open_writer(name, self.wanted.out, names))
                for name in self.wanted.formats
                if name != "table"
            ]
            stream = self.detector.stream(sources(), batch=batch, tiling=self.wanted.tiling)
            for photo in progress(stream, self.total):
                item = under_way.popleft()
                try:
                    self._take(item, photo, stems, writers)
                except BluError as error:
                    self._skip(error)
        self._summary(time.perf_counter() - start, [path for writer in writers for path in writer.written])
        return self.failures

    def _take(self, item: Input, photo: Photo, stems: Stems, writers: list[Writer]) -> None:
        """Write and print one photo's detections."""
        from blu_export.results.base import Result

        whole = photo.result()
        if self.wanted.nms is not None:
            whole = whole.without_overlaps(self.wanted.nms)
        found = self._tracked(item, whole).filter(0.0, self.wanted.classes)
        shown = found.filter(self.wanted.shown_score)
        named = item.name if item.video is None else str(item.video)
        result = Result(found, named, None if item.video is None else item.frame, photo.image)
        stem = stems.of(item.name, item.video)
        for writer in writers:
            writer.write(stem, replace(result, found=shown) if writer.for_people else result, item.fps)
        if self.wanted.tiling is not None:
            self.windows += len(self.wanted.tiling.windows(found.image_size))
        self._print(item, result, shown)
        self.done += 1

    def _tracked(self, item: Input, found: Detections) -> Detections:
        if not self.wanted.track or item.video is None:
            return found
        from blu_export.tracks import Tracker

        if item.video not in self._trackers:
            self._trackers[item.video] = Tracker(item.fps)
        return self._trackers[item.video].update(found, item.frame)

    def _inputs(self) -> Iterator[Input]:
        from blu_export.sources import STDIN, Input, read_stdin
        from blu_export.video import VIDEO_SUFFIXES, is_live

        for path in self.paths:
            try:
                if path == Path(STDIN):
                    yield Input("stdin", read_stdin())
                elif path.suffix.lower() in VIDEO_SUFFIXES or is_live(path):
                    yield from self._frames(path)
                else:
                    yield Input(str(path), path)
            except BluError as error:
                self._skip(error)

    def _frames(self, path: Path) -> Iterator[Input]:
        from blu_export.sources import Input
        from blu_export.video import Video

        with Video(path, self.wanted.stride) as video:
            for number, image in video:
                yield Input(f"{path} frame {number}", image, path, number, video.fps)
            if video.damaged:
                complain(f"{path}: {video.damaged} damaged frames were left out")
            if video.ended_early:
                self.failures += 1
                complain(
                    f"{path} ends before its last frame ({video.expected} in all): everything up to there was kept"
                )

    def _skip(self, error: BluError) -> None:
        self.failures += 1
        complain(f"skipped: {error}")

    def _print(self, item: Input, result: Result, shown: Detections) -> None:
        if self.wanted.as_json:
            from blu_export.results.json import json_record

            print(json.dumps(json_record(result)), flush=True)
        if "table" in self.wanted.formats:
            from blu_export.cli.infer_table import print_line, print_table

            hidden = len(result.found) - len(shown)
            note = f", {hidden} below {self.wanted.shown_score:g} not shown" if hidden else ""
            (print_table if self.wanted.tables else print_line)(self._console, item.name, shown, note)

    def _summary(self, seconds: float, written: list[Path]) -> None:
        if len(written) > 3:
            say(f"wrote {len(written)} files to {self.wanted.out}")
        for path in written if len(written) <= 3 else ():
            if self.wanted.verbose:
                wrote(path)
            else:
                say(f"wrote {path}")
        if self.done:
            self._say_speed(seconds)
        elif not self.failures:
            complain("there was nothing to look at")
        if self.failures:
            complain(f"{self.failures} of {self.done + self.failures} could not be processed")

    def _say_speed(self, seconds: float) -> None:
        runner = self.detector.runner
        line = f"{self.done} photo{'s' * (self.done > 1)} in {seconds:.1f} s"
        if self.done > 1:
            line += f" ({self.done / seconds:.2f}/s)"
        if self.wanted.verbose:
            stages = (f"{stage} {1000 * spent / self.done:.1f}" for stage, spent in self.detector.timings.items())
            line += f", ms per photo: {'  '.join(stages)}"
        lanes = f", {runner.lanes} at a time" if runner.lanes > 1 else ""
        say(f"{line}, with {runner.runtime} on {runner.device}, {runner.precision}{lanes}")
        if self.windows:
            say(f"tiles: {self.windows} passes of the network instead of {self.done}, the whole photos included")


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
