"""``blu infer``: detect on photos, folders, standard input and videos."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blu_export.cli.common import (
    DeviceOption,
    ModelOption,
    PrecisionOption,
    RuntimeOption,
    ThreadsOption,
    command_app,
    printable,
    progress,
    say,
    show_log,
    stdout,
    wrote,
)
from blu_export.errors import EXIT_BAD_INPUT, BluError, UsageError

if TYPE_CHECKING:
    from blu_export.cli.outputs import Output
    from blu_export.detections import Detections
    from blu_export.detector import Detector, Photo
    from blu_export.sources import Input

app = command_app()

FORMATS = ("table", "json", "coco", "npz", "overlay")
SHOWN_SCORE = 0.5
"""What people are shown unless they say otherwise. A model whose AP is measured gives doubtful detections too."""
MANY_PHOTOS = 16
"""From so many on, photos a second count for more than the time of one: see load(throughput=…)."""


@app.command()
def infer(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES...", help="Photos, folders, globs, videos, or - for standard input.")
    ],
    model: ModelOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the files that the formats write.")] = Path("out"),
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help=f"{', '.join(FORMATS)}; may be given several times.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON per photo on stdout.")] = False,
    min_score: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help=f"Drop detections below this score. Default: files and --json hold all that the model gives, "
            f"tables and pictures show those of {SHOWN_SCORE} and more.",
        ),
    ] = None,
    class_names: Annotated[
        list[str] | None, typer.Option("--class", help="Keep this class only; may be given several times.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Photos that go through the network at once.")] = 1,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Find objects on photos, in folders or on a video.

    A photo that cannot be read is reported and skipped; the exit code is then 3.

    \b
    blu infer street.jpg
    blu infer photos/ --format overlay --format coco --out found
    blu infer 'photos/*.jpg' --json --class dress --min-score 0.9
    """
    from blu_export.detector import load
    from blu_export.sources import IMAGE_SUFFIXES, VIDEO_SUFFIXES, find_images

    chosen = list(dict.fromkeys(formats or ([] if as_json else ["table"])))
    if unknown := [name for name in chosen if name not in FORMATS]:
        raise UsageError(f"There is no format '{unknown[0]}'.", f"Formats are {', '.join(FORMATS)}.")
    show_log()
    paths = find_images(images, IMAGE_SUFFIXES | VIDEO_SUFFIXES, skip=out)
    if not paths:
        raise UsageError(f"There are no photos in {', '.join(images)}.", "Name photos, videos, or folders of them.")
    total = _total(paths)
    many = batch == 1 and (total is None or total >= MANY_PHOTOS)
    detector = load(model, runtime=runtime, precision=precision, device=device, threads=threads, throughput=many)
    detector.min_score = min_score or 0.0
    wanted = _class_ids(class_names or [], detector.spec.class_names)
    shown = SHOWN_SCORE if min_score is None else min_score
    failures = Inference(detector, paths, total, chosen, as_json, wanted, shown, out).run(batch)
    if failures:
        raise typer.Exit(EXIT_BAD_INPUT)


class Inference:
    """One run of the command."""

    def __init__(
        self,
        detector: Detector,
        paths: list[Path],
        total: int | None,
        formats: list[str],
        as_json: bool,
        class_ids: list[int] | None,
        shown_score: float,
        out: Path,
    ) -> None:
        self.detector = detector
        self.paths = paths
        self.total = total
        self.formats = formats
        self.as_json = as_json
        self.class_ids = class_ids
        self.shown_score = shown_score
        self.out = out
        self.done = 0
        self.failures = 0

    def run(self, batch: int) -> int:
        """Detect on everything; returns the number of photos that failed."""
        from blu_export.cli.outputs import FILE_FORMATS, Names

        names = Names()
        under_way: deque[Input] = deque()

        def sources() -> Iterator[object]:
            for item in self._inputs():
                under_way.append(item)
                yield item.source

        start = time.perf_counter()
        with ExitStack() as stack:
            outputs: list[Output] = [
                stack.enter_context(FILE_FORMATS[name](self.out, self.detector.spec))
                for name in self.formats
                if name in FILE_FORMATS
            ]
            for photo in progress(self.detector.stream(sources(), batch=batch), self.total):
                item = under_way.popleft()
                try:
                    photo.detections = self._keep(photo.result())
                    shown = self._shown(photo)
                    name = names.name(item)
                    for output in outputs:
                        output.write(name, item, shown if output.for_people else photo)
                except BluError as error:
                    self._skip(error)
                    continue
                self._print(item, photo, shown)
                self.done += 1
        self._summary(time.perf_counter() - start, outputs)
        return self.failures

    def _inputs(self) -> Iterator[Input]:
        from blu_export.sources import STDIN, VIDEO_SUFFIXES, Input, read_stdin, read_video

        for path in self.paths:
            try:
                if path == Path(STDIN):
                    yield Input("stdin", read_stdin())
                elif path.suffix.lower() in VIDEO_SUFFIXES:
                    yield from read_video(path)
                else:
                    yield Input(str(path), path)
            except BluError as error:
                self._skip(error)

    def _keep(self, found: Detections) -> Detections:
        if self.class_ids is None:
            return found
        import numpy as np

        return found[np.isin(found.class_ids, self.class_ids)]

    def _shown(self, photo: Photo) -> Photo:
        found = photo.result()
        return replace(photo, detections=found[found.scores >= self.shown_score])

    def _skip(self, error: BluError) -> None:
        self.failures += 1
        say(f"skipped: {error}")

    def _print(self, item: Input, photo: Photo, shown: Photo) -> None:
        if self.as_json:
            from blu_export.cli.outputs import json_record

            print(json.dumps(json_record(item, photo)), flush=True)
        if "table" in self.formats:
            hidden = len(photo.result()) - len(shown.result())
            note = f", {hidden} below {self.shown_score:g} not shown" if hidden else ""
            _print_table(item.name, shown.result(), note)

    def _summary(self, seconds: float, outputs: list[Output]) -> None:
        paths = [path for output in outputs for path in output.written]
        if len(paths) <= 3:
            for path in paths:
                wrote(path)
        else:
            say(f"wrote {len(paths)} files to {self.out}")
        if self.done:
            runner = self.detector.runner
            stages = "  ".join(
                f"{stage} {1000 * spent / self.done:.1f}" for stage, spent in self.detector.timings.items()
            )
            say(
                f"{self.done} photo{'s' * (self.done > 1)} in {seconds:.1f} s ({self.done / seconds:.2f}/s; "
                f"ms per photo: {stages}) "
                f"with {runner.runtime} on {runner.device}, {runner.precision}"
                f"{f', {runner.lanes} at a time' if runner.lanes > 1 else ''}"
            )
        elif not self.failures:
            say("there was nothing to look at")
        if self.failures:
            say(f"{self.failures} of {self.done + self.failures} could not be processed")


def _total(paths: list[Path]) -> int | None:
    """Photos and frames to come; None where a video does not say how many it has."""
    from blu_export.sources import VIDEO_SUFFIXES, count_frames

    counts = [count_frames(path) if path.suffix.lower() in VIDEO_SUFFIXES else 1 for path in paths]
    return None if None in counts else sum(count or 0 for count in counts)


def _class_ids(names: list[str], known: tuple[str, ...]) -> list[int] | None:
    """Ids of the named classes; None for all."""
    if unknown := [name for name in names if name not in known[1:]]:
        raise UsageError(f"The model has no class '{unknown[0]}'.", f"Its classes are: {', '.join(known[1:])}.")
    return [index for index, name in enumerate(known) if index > 0 and name in names] if names else None


def _print_table(name: str, found: Detections, note: str) -> None:
    """Class, score, box and mask area of every detection, on stdout; ``note`` ends the title."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    height, width = found.image_size
    title = printable(f"{name}  {width}×{height}  {len(found)} found{note}")
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD)
    for heading in ("class", "score", "x", "y", "width", "height", "mask px", "of photo"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for index in range(len(found)):
        y1, x1, y2, x2 = found.rois[index].tolist()
        area = int(found.crops[index].sum())
        table.add_row(
            Text(printable(found.class_names[found.class_ids[index]])),
            f"{found.scores[index]:.3f}",
            *map(str, (x1, y1, x2 - x1, y2 - y1, area)),
            f"{100 * area / (height * width):.1f} %",
        )
    stdout().print(table)
