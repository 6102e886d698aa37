"""One run of blu infer: photos and frames in, tables and files out."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from blu_export.cli.common import complain, progress, say, stdout, wrote
from blu_export.errors import BluError

if TYPE_CHECKING:
    from blu_export.detections import Detections
    from blu_export.detector import Detector
    from blu_export.results.base import Result
    from blu_export.results.folder import Stems, Writer
    from blu_export.sources import Input
    from blu_export.stream import Photo
    from blu_export.tiles import Tiling
    from blu_export.tracks import Tracker


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
