"""Detector: photos in, Detections out; decoding and un-molding overlap with the network."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.embedded import embedded
from blu_export.errors import BluError, UsageError
from blu_export.image import MAX_PIXELS, decode, mold, unmold
from blu_export.runtime import Runner, RunnerOptions, load_runner
from blu_export.spec import ModelSpec
from blu_export.stream import Photo, Source, group_by_canvas, map_ahead
from blu_export.tiles import Tiling, Window, merge_tiles

STAGES = ("decode", "mold", "run", "unmold")


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "auto",
    precision: str = "file",
    device: str | None = None,
    threads: int | None = None,
    throughput: bool = False,
    class_names: Sequence[str] | None = None,
    settings: Sequence[str] = (),
    config: str | os.PathLike[str] | None = None,
    ignore_layers: Sequence[str] = (),
    max_pixels: int = MAX_PIXELS,
    bits: int | None = None,
) -> Detector:
    """Load a model; without a path the one that comes with the package.

    Args:
        path: .onnx, .engine, .h5 or .keras file. Keras weights are converted in memory, once: the result is cached.
        runtime: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``keras``; ``auto`` takes the fastest that works here.
        precision: ``file`` takes the file as it is; ``float32``, ``fp16``, ``bf16`` or ``int8`` the file beside it of
            that precision; ``auto`` the fastest of them that passed its parity check.
        device: ``cpu``, ``cuda``, ``cuda:1``, …; None: what the runtime chooses.
        threads: of the network on the processor; None: the cores that this process may use.
        throughput: photos a second count for more than the time of one: several go through the network at a time.
        class_names: by class id. This and the next three are for Keras weights that do not say all about themselves.
        settings: ``NAME=VALUE``, as in a Matterport ``Config``.
        config: a file with a Matterport ``Config``; read, never run.
        ignore_layers: of the file, that inference does not need.
        max_pixels: of a photo, height times width; larger ones are refused.
        bits: in use of 16-bit gray photos that do not say how many; see ``image.decode``.

    Raises:
        UsageError: the runtime cannot run this kind of file.
        ModelFileError: the file is missing, corrupt, foreign, or in another precision.
        MissingDependencyError: the runtime is not installed, or its device is not there.
    """
    options = RunnerOptions(
        runtime,
        precision,
        device,
        threads,
        throughput,
        class_names=class_names,
        settings=settings,
        config=None if config is None else os.fspath(config),
        ignore_layers=ignore_layers,
    )
    return Detector(load_runner(path or embedded(), options), max_pixels=max_pixels, bits=bits)


class CallOptions(TypedDict, total=False):
    """The keywords of a Detector's call, for type checkers; see there."""

    batch: int
    min_score: float
    classes: Iterable[str | int] | None
    tile: int | None
    overlap: float


class Detector:
    """Runs a model on photos.

    Args:
        runner: a loaded model; see ``load`` for the usual way to get one.
        min_score: detections below it are dropped, 0..1. The model itself already drops those below
            ``spec.detection_min_confidence``.
        max_pixels: of a photo; see ``image.decode``.
        bits: of 16-bit gray photos; see ``image.decode``.

    Attributes:
        timings: seconds per stage (decode, mold, run, unmold) of the last call or stream, summed over
            its photos.
    """

    def __init__(
        self, runner: Runner, min_score: float = 0.0, max_pixels: int = MAX_PIXELS, bits: int | None = None
    ) -> None:
        if not 0 <= min_score <= 1:
            raise UsageError(f"The minimum score {min_score} is not between 0 and 1.")
        self.runner = runner
        self.min_score, self.max_pixels, self.bits = min_score, max_pixels, bits
        self.timings = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        """``Detector(onnxruntime float32 on CPU, 9 classes)``."""
        runner = self.runner
        return f"Detector({runner.runtime} {runner.precision} on {runner.device}, {self.spec.num_classes - 1} classes)"

    @property
    def spec(self) -> ModelSpec:
        """What the model is: class names, canvas, thresholds."""
        return self.runner.spec

    @overload
    def __call__(
        self, source: list[Source] | tuple[Source, ...], **options: Unpack[CallOptions]
    ) -> list[Detections]: ...
    @overload
    def __call__(self, source: Source, **options: Unpack[CallOptions]) -> Detections: ...
    def __call__(
        self,
        source: Source,
        *,
        batch: int = 1,
        min_score: float = 0.0,
        classes: Iterable[str | int] | None = None,
        tile: int | None = None,
        overlap: float = 0.2,
    ) -> Detections | list[Detections]:
        """Detect on one photo, or on a list of them.

        Args:
            source: a path, bytes, PIL image or uint8 [H, W, 3] RGB array; or a list of those, of any sizes.
            batch: how many canvases of a list, or tiles of a photo, go through the network at once.
            min_score: drop detections below it, 0..1.
            classes: keep these alone, by name or id.
            tile: also look at the photo in tiles of this many pixels, for small things.
            overlap: share of a tile that its neighbor sees as well.

        Returns:
            Detections, or a list of them in the order of the list. They know their photo: ``found.plot()``.

        Raises:
            ImageError: a photo cannot be read; ``stream`` goes on instead.
            UsageError: a class is unknown.
        """
        several = isinstance(source, list | tuple)
        wanted = None if classes is None else list(classes)
        Detections.empty((1, 1), self.spec.class_names).filter(min_score, wanted)  # unknown classes: before the work
        if several or tile is not None:
            tiling = None if tile is None else Tiling(tile, overlap)
            photos = list(self.stream(source if several else [source], batch=batch, tiling=tiling))
        else:
            self._reset_timings()
            photos = [self._prepare(source)]
            self._run(photos)
            self._finish(photos[0])
        found = [_with_photo(photo, self._decode).filter(min_score, wanted) for photo in photos]
        return found if several else found[0]

    def stream(
        self, sources: Iterable[Source], *, batch: int = 1, workers: int = 2, tiling: Tiling | None = None
    ) -> Iterator[Photo]:
        """Yield a Photo for each source, in order, while the next ones are under way.

        Photos are decoded and un-molded in ``workers`` threads while the network works on others, on as
        many at a time as the runner has lanes.
        ``sources`` is read as results are taken, a few batches ahead: it may be endless. A photo that
        fails carries its error and the stream goes on.

        Args:
            sources: what ``__call__`` takes, one after another.
            batch: canvases per call of the network. Where canvases follow the photo, those of one size share a
                batch, and up to OVERTAKEN batches of later photos may go before one that waits for its like.
            workers: threads for decoding and un-molding.
            tiling: look at each photo in tiles too.
        """
        if batch < 1 or workers < 1:
            raise UsageError("A stream needs batch and workers of at least 1.")
        self._reset_timings()
        if tiling is not None:
            return self._stream_tiles(sources, tiling, batch, workers)
        return self._stream(sources, batch, workers)

    def _stream_tiles(self, sources: Iterable[Source], tiling: Tiling, batch: int, workers: int) -> Iterator[Photo]:
        """Photos whose windows go through ``_stream`` one after another; all of a photo's are kept until its last."""
        under_way: deque[tuple[Photo, list[Window]]] = deque()

        def windows() -> Iterator[NDArray[np.uint8]]:
            for source in sources:
                photo = Photo(source)
                try:
                    with self._timed("decode"):
                        photo.image = self._decode(source)
                except BluError as error:
                    photo.error = error
                    under_way.append((photo, []))
                    continue
                height, width = photo.image.shape[:2]
                under_way.append((photo, tiling.windows((height, width))))
                for y1, x1, y2, x2 in under_way[-1][1]:
                    yield photo.image[y1:y2, x1:x2]

        parts: list[Photo] = []
        for part in self._stream(windows(), batch, workers):
            while not under_way[0][1]:
                yield under_way.popleft()[0]
            parts.append(part)
            photo, seen = under_way[0]
            if len(parts) == len(seen):
                under_way.popleft()
                yield self._join(photo, seen, parts)
                parts = []
        yield from (photo for photo, _ in under_way)

    def _join(self, photo: Photo, windows: list[Window], parts: list[Photo]) -> Photo:
        assert photo.image is not None
        photo.error = next((part.error for part in parts if part.error is not None), None)
        if photo.error is None:
            with self._timed("unmold"):
                found = [part.result() for part in parts]
                photo.detections = merge_tiles(windows, found, found[0].image_size)
        return photo

    def _stream(self, sources: Iterable[Source], batch: int, workers: int) -> Iterator[Photo]:
        pool = ThreadPoolExecutor(workers, "blu-photo")
        lanes = self.runner.lanes
        network = ThreadPoolExecutor(lanes, "blu-network")

        def run_then_finish(photos: dict[int, Photo]) -> dict[int, Future[Photo]]:
            self._run(list(photos.values()))
            return {number: pool.submit(self._finish, photo) for number, photo in photos.items()}

        try:
            prepared = map_ahead(pool, self._prepare, sources, batch + workers)
            # One batch in each lane and one waiting, so that none ever pauses.
            early: dict[int, Future[Photo]] = {}
            due = 0
            for finishing in map_ahead(network, run_then_finish, group_by_canvas(prepared, batch), lanes + 1):
                early |= finishing
                while due in early:
                    yield early.pop(due).result()
                    due += 1
        finally:
            network.shutdown(cancel_futures=True)
            pool.shutdown(cancel_futures=True)

    def _prepare(self, source: Source) -> Photo:
        photo = Photo(source)
        try:
            with self._timed("decode"):
                photo.image = self._decode(source)
            with self._timed("mold"):
                photo.molded = mold(photo.image, self.spec)
        except BluError as error:
            photo.error = error
        return photo

    def _run(self, photos: list[Photo]) -> None:
        """Run the network on photos of one canvas size; those with an error have no canvas."""
        good = [(photo, photo.molded) for photo in photos if photo.molded is not None]
        if not good:
            return
        try:
            with self._timed("run"):
                detections, masks = self.runner.run(
                    np.stack([molded.canvas for _, molded in good]), np.stack([molded.window for _, molded in good])
                )
        except BluError as error:
            for photo, _ in good:
                photo.error = error
            return
        for (photo, _), rows, crops in zip(good, detections, masks, strict=True):
            photo.raw = rows, crops

    def _finish(self, photo: Photo) -> Photo:
        if photo.raw is not None and photo.molded is not None:
            try:
                with self._timed("unmold"):
                    found = unmold(*photo.raw, photo.molded, self.spec)
                    photo.detections = found[found.scores >= self.min_score] if self.min_score else found
            except BluError as error:  # the network gave no numbers, say
                photo.error = error
        photo.raw = photo.molded = None  # large, and of no use to the caller
        return photo

    def _reset_timings(self) -> None:
        self.timings = dict.fromkeys(STAGES, 0.0)

    def _decode(self, source: Source) -> NDArray[np.uint8]:
        channels = self.spec.image_channel_count
        return decode(source, max_pixels=self.max_pixels, bits=self.bits, channels=channels)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.timings[stage] += time.perf_counter() - start


@dataclass(frozen=True)
class _Pixels:
    """A photo that is decoded when its pixels are asked for."""

    source: Source
    decode: Callable[[Source], NDArray[np.uint8]]

    def __call__(self) -> NDArray[np.uint8]:
        return self.decode(self.source)


def _with_photo(photo: Photo, decode: Callable[[Source], NDArray[np.uint8]]) -> Detections:
    """A photo's detections, which know it: by its source, as its pixels may be many."""
    named = isinstance(photo.source, str | os.PathLike)
    name = os.fspath(photo.source) if named else ""
    return replace(photo.result(), photo=_Pixels(photo.source, decode), photo_name=name)
