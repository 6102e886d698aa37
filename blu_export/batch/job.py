"""A batch job from its settings to its report."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blu_export.batch.local import Event, run_local
from blu_export.batch.lock import SinkLock
from blu_export.batch.photos import list_photos
from blu_export.batch.plan import Plan, Shard, open_plan
from blu_export.batch.process import Detecting, Job, child_threads
from blu_export.batch.shard import Summary, read_summary
from blu_export.batch.sink import Sink
from blu_export.errors import DatasetError, UsageError
from blu_export.files import sha256_of
from blu_export.results import FORMATS
from blu_export.tiles import Tiling

log = logging.getLogger(__name__)

PARQUET, COCO = "parquet", "coco"
SHARD_SIZE = 100
"""Photos per file: what a crash costs at most, per worker."""
FOOTERS_AT_ONCE = 32


@dataclass(frozen=True)
class BatchSettings(Detecting):
    """What ``blu batch`` is asked for."""

    source: str
    sink: str
    model: Path
    format: str = "parquet"
    workers: int | None = None
    """None: one; on Ray one per machine, or per GPU."""
    ray: str | None = None
    """Address of a cluster; None: processes of this machine."""
    shard_size: int = SHARD_SIZE
    retry_failed: bool = False
    """Process shards with failed photos again."""

    def __post_init__(self) -> None:
        if self.format not in (PARQUET, *FORMATS):
            raise UsageError(f"There is no format '{self.format}'.", f"Formats are {', '.join((PARQUET, *FORMATS))}.")
        for name in ("workers", "shard_size", "batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")
        if not 0 <= self.min_score <= 1:
            raise UsageError(f"The minimum score {self.min_score} is not between 0 and 1.")
        _ = self.tiling  # raises if it is invalid

    @property
    def tiling(self) -> Tiling | None:
        """None: whole photos only."""
        return None if self.tile is None else Tiling(self.tile, self.overlap)


@dataclass(frozen=True)
class Report:
    """What came of a job: counts of all its photos, times of this run only."""

    sink: str
    photos: int
    failed: int
    detections: int
    ran: int
    """Photos of this run; the others were finished before."""
    seconds: float
    """Of this run, from the first start of a worker."""
    workers: int
    stage_seconds: dict[str, float] = field(default_factory=dict)
    """Seconds per stage and photo of this run, in one worker; stages overlap."""
    worker_seconds: float = 0.0
    """Seconds of a worker per photo of this run."""
    model: dict[str, str] = field(default_factory=dict)
    coco: str | None = None
    files: str | None = None
    """Where the results are in another format: a file or a folder."""

    @property
    def rate(self) -> float:
        """Photos per second of this run."""
        return self.ran / self.seconds if self.ran else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "photos_per_second": self.rate}


class BatchJob:
    """One run of a job; ``run`` yields as photos are done, then ``report`` says what came of it.

    Attributes:
        total: photos of the job.
        finished: those that were finished before this run.

    Raises:
        BluError: source, sink, model and settings do not make a valid job, or another job uses the sink.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.settings = settings
        self.sink = Sink(settings.sink)
        if not settings.model.is_file():
            raise DatasetError(f"There is no model file {settings.model}.", "Check the path.")
        sha256 = sha256_of(settings.model)
        photos = list_photos(settings.source)
        empty = Plan(sha256, settings.min_score, tiling=settings.tiling)
        self._lock = SinkLock(self.sink)
        try:
            self.plan, self.new = open_plan(self.sink, empty, photos, settings.shard_size)
            self._done = self._finished()
        except BaseException:
            self.close()
            raise
        self._todo = [shard for shard in self.plan.shards if shard.index not in self._done]
        self.total = len(self.plan.photos)
        self.finished = sum(summary.photos for summary in self._done.values())
        self.workers = settings.workers or 1
        self.report: Report | None = None

    def close(self) -> None:
        """Release the sink for other jobs; ``run`` does so when it ends."""
        self._lock.close()

    def run(self) -> Iterator[str]:
        """Process what is left; yields once per photo that is done.

        Raises:
            BluError: the job cannot go on. What is finished stays; the same call continues from there.
        """
        try:
            yield from self._run()
        finally:
            self.close()

    def _run(self) -> Iterator[str]:
        self.sink.tidy()
        current: Counter[int] = Counter()
        reported, ran = 0, []
        start = time.perf_counter()
        for event in self._events() if self._todo else ():
            current[event.index] = event.done
            if event.summary is not None:
                ran.append(event.summary)
                self._done[event.index] = event.summary
            # Less than before where a shard has begun again; those photos are not yielded twice.
            while reported < current.total():
                reported += 1
                yield "photo"
        seconds = time.perf_counter() - start
        self._check_complete()
        self.report = self._report(ran, seconds)

    def _events(self) -> Iterator[Event]:
        settings = self.settings
        job = Job(
            model=str(settings.model.resolve()),
            model_sha256=self.plan.model_sha256,
            sink=self.sink.url,
            **settings.detecting(),
        )
        if settings.ray is None:
            threads = child_threads(job.options.threads, self.workers)
            return run_local(job.with_threads(threads), self._todo, self.workers)
        from blu_export.batch.on_ray import run_on_ray
        from blu_export.cluster import share_for

        options = job.options
        share = share_for(settings.ray, settings.model, options.device, settings.workers, options.threads)
        self.workers = share.workers
        return run_on_ray(job, self._todo, settings.workers, settings.ray)

    def _finished(self) -> dict[int, Summary]:
        """Shards whose files are there and whole, by index."""
        names = self.sink.names()
        there = [shard for shard in self.plan.shards if shard.name in names]

        def summary(shard: Shard) -> Summary | None:
            return read_summary(self.sink, shard)

        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            summaries = list(pool.map(summary, there))
        if damaged := [shard.name for shard, found in zip(there, summaries, strict=True) if found is None]:
            log.warning("%d damaged files are written again, starting with %s", len(damaged), damaged[0])
        again = self.settings.retry_failed
        return {found.index: found for found in summaries if found is not None and not (again and found.failed)}

    def _check_complete(self) -> None:
        names = self.sink.names()
        if missing := [shard.name for shard in self.plan.shards if shard.name not in names]:
            raise DatasetError(
                f"{len(missing)} files are missing in {self.sink.url}, {missing[0]} first.",
                "Start the job again; on a cluster the sink must be the same for all machines.",
            )

    def _report(self, ran: list[Summary], seconds: float) -> Report:
        photos = sum(summary.photos for summary in ran)
        stages: Counter[str] = Counter()
        for summary in ran:
            stages.update(summary.stages)
        every = list(self._done.values())
        coco, files = None, None
        if self.settings.format == COCO:
            from blu_export.batch.coco import write_coco

            coco = write_coco(self.sink, self.plan, every[0])
        elif self.settings.format != PARQUET:
            from blu_export.batch.convert import write_format

            files = write_format(self.sink, self.plan, every[0], self.settings.format, self.settings)
        return Report(
            sink=self.sink.url,
            photos=sum(summary.photos for summary in every),
            failed=sum(summary.failed for summary in every),
            detections=sum(summary.detections for summary in every),
            ran=photos,
            seconds=seconds,
            workers=self.workers,
            stage_seconds={stage: spent / photos for stage, spent in stages.items()} if photos else {},
            worker_seconds=sum(summary.seconds for summary in ran) / photos if photos else 0.0,
            model=every[-1].model,
            coco=coco,
            files=files,
        )
