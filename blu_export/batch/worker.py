"""The worker: a process that holds the model and turns shards into files. A crash or hang of a runtime ends here.

It talks with its owner (batch.process) over the channel of workers:

    worker → owner   {"ready": …} once the model is loaded
    owner → worker   {"index": N, "photos": […], "careful": false, "skip": {photo: error}}
    worker → owner   {"done": photos of the shard so far}, and when ``careful`` {"start": number of the photo} before
    worker → owner   {"summary": …} once the shard's file is in the sink
    worker → owner   {"error": …} where the job cannot go on

It ends when the owner closes its end, also in the middle of a shard.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from blu_export.batch.photos import read_ahead
from blu_export.batch.plan import Shard
from blu_export.batch.shard import Summary, encode, row
from blu_export.batch.sink import Sink
from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.errors import BluError, ModelFileError
from blu_export.files import sha256_of
from blu_export.image import MAX_PIXELS
from blu_export.runtime.options import RunnerOptions
from blu_export.stream import Photo, Source
from blu_export.tiles import Tiling
from blu_export.workers.channel import Channel, error_as_json
from blu_export.workers.entry import load_function

log = logging.getLogger(__name__)


class Work:
    """A loaded model that processes shards.

    Args:
        job: the fields of process.Job.
        say: sends one message to the owner.
    """

    def __init__(self, job: dict[str, Any], say: Any) -> None:
        self.job, self.say = job, say
        self.sink = Sink(job["sink"])
        runner = load_function(job["loader"])(job["model"], RunnerOptions(**job["options"]))
        if sha256_of(job["model"]) != job["model_sha256"]:
            raise ModelFileError(f"{job['model']} has changed since the job began.", "Start it again.")
        self.detector = Detector(runner, job["min_score"], job["max_pixels"] or MAX_PIXELS, job["bits"])
        self.tiling = None if job["tile"] is None else Tiling(job["tile"], job["overlap"])
        self.model = {
            "sha256": job["model_sha256"],
            "runtime": runner.runtime,
            "device": runner.device,
            "precision": runner.precision,
        }

    def run(self, shard: Shard, careful: bool, skip: dict[str, str]) -> Summary:
        """Detect on a shard's photos and write its file.

        Args:
            shard: its photos.
            careful: one photo after the other, each told before it begins.
            skip: photos not to be tried, with their errors; only looked at when careful.
        """
        start = time.perf_counter()
        stages: defaultdict[str, float] = defaultdict(float)
        rows: list[dict[str, Any]] = []
        found: Detections | None
        for photo, result in self._results(shard, careful, skip, stages):
            found, error = (None, result) if isinstance(result, str) else (result, None)
            write_start = time.perf_counter()
            rows.append(row(photo, found, error, self.job["model_sha256"]))
            stages["write"] += time.perf_counter() - write_start
            self.say(done=len(rows))
        write_start = time.perf_counter()
        summary = Summary(
            index=shard.index,
            photos=len(rows),
            failed=sum(each["error"] is not None for each in rows),
            detections=sum(len(each["detections"] or ()) for each in rows),
            seconds=time.perf_counter() - start,
            stages=dict(stages),
            model=self.model,
            spec=self.detector.spec.to_json(),
        )
        self.sink.write(shard.name, encode(rows, summary))
        stages["write"] += time.perf_counter() - write_start
        return replace(summary, seconds=time.perf_counter() - start, stages=dict(stages))

    def _results(
        self, shard: Shard, careful: bool, skip: dict[str, str], stages: defaultdict[str, float]
    ) -> Iterator[tuple[str, Detections | str]]:
        """Each photo of the shard with its detections or its error, in order."""
        unread: dict[int, str] = {}

        def sources() -> Iterator[Source]:
            photos = read_ahead(shard.photos)
            for index in range(len(shard.photos)):
                start = time.perf_counter()
                source = next(photos)
                stages["read"] += time.perf_counter() - start  # that the others had to wait for
                if isinstance(source, BluError):
                    unread[index] = str(source)
                yield b"" if isinstance(source, BluError) else source

        if careful:
            for index, (photo, source) in enumerate(zip(shard.photos, sources(), strict=True)):
                if photo in skip:
                    yield photo, skip[photo]
                    continue
                self.say(start=index)
                yield photo, unread.get(index) or self._alone(source)
            return
        stream = self.detector.stream(sources(), batch=self.job["batch"], tiling=self.tiling)
        for index, (photo, result) in enumerate(zip(shard.photos, stream, strict=True)):
            yield photo, unread.get(index) or self._outcome(result)
        for stage, seconds in self.detector.timings.items():
            stages[stage] += seconds

    def _outcome(self, photo: Photo) -> Detections | str:
        if photo.error is None:
            return photo.result()
        # The network refuses a batch as a whole: not every photo of it need be at fault.
        return self._alone(photo.image) if photo.image is not None else str(photo.error)

    def _alone(self, source: Source) -> Detections | str:
        try:
            # Not self.detector: its stream may be under way.
            known = self.detector
            alone = Detector(known.runner, known.min_score, known.max_pixels, known.bits)
            (photo,) = alone.stream([source], tiling=self.tiling)
            return photo.result()
        except BluError as error:
            if error.lost:
                raise
            return str(error)


def main(channel: Channel, job: dict[str, Any]) -> None:
    """Process shards until the owner closes its end."""
    try:
        _work(channel, job)
    except Exception:
        traceback.print_exc()
    os._exit(1)  # the interpreter's own end would wait for the thread that reads


def _work(channel: Channel, job: dict[str, Any]) -> None:
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(channel, requests), daemon=True).start()
    try:
        work = Work(job, channel.send)
        channel.send(ready=work.model)
        while True:
            request = requests.get()
            shard = Shard(request["index"], tuple(request["photos"]))
            channel.send(summary=asdict(work.run(shard, request["careful"], request["skip"])))
    except BluError as error:
        if error.lost:  # the owner starts another worker
            log.error("%s", error)
            sys.exit(1)
        channel.send(error=error_as_json(error))


def _receive(channel: Channel, requests: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take requests; end the process as soon as the owner closes its end."""
    for request in channel:
        requests.put(request)
    os._exit(0)
