"""Shards on worker processes of this machine."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blu_export.batch.plan import Shard
from blu_export.batch.process import Job, Worker
from blu_export.batch.shard import Summary


@dataclass(frozen=True)
class Event:
    """News of a shard."""

    index: int
    done: int
    """Its photos so far."""
    summary: Summary | None = None
    """Once its file is in the sink."""


def run_local(job: Job, shards: Sequence[Shard], workers: int) -> Iterator[Event]:
    """Process shards in ``workers`` processes; they end with the iterator.

    Raises:
        BluError: the job cannot go on.
    """
    waiting: queue.SimpleQueue[Shard] = queue.SimpleQueue()
    for shard in shards:
        waiting.put(shard)
    news: queue.SimpleQueue[Event | BaseException] = queue.SimpleQueue()
    pool = [Worker(job) for _ in range(min(workers, len(shards)))]
    threads = [threading.Thread(target=_work, args=(worker, waiting, news), daemon=True) for worker in pool]
    try:
        for thread in threads:
            thread.start()
        finished = 0
        while finished < len(shards):
            event = news.get()
            if isinstance(event, BaseException):
                raise event
            finished += event.summary is not None
            yield event
    finally:
        for worker in pool:
            worker.close()
        for thread in threads:
            thread.join()


def _work(worker: Worker, waiting: queue.SimpleQueue[Shard], news: queue.SimpleQueue[Event | BaseException]) -> None:
    with worker:
        while True:
            try:
                shard = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                index = shard.index
                summary = worker.run(shard, lambda done, index=index: news.put(Event(index, done)))  # type: ignore[misc]
                news.put(Event(index, len(shard.photos), summary))
            except BaseException as error:  # told to the owner, whose thread raises it
                news.put(error)
                return
