"""Shards on a Ray cluster: Ray Data with a pool of actors, each of which owns a worker process.

Ray restarts lost actors and the work of lost nodes; a worker process that dies is its actor's matter.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.batch.local import Event
from blu_export.batch.plan import Shard
from blu_export.batch.process import Job, Worker
from blu_export.batch.shard import Summary
from blu_export.cluster import connect, model_files, model_folder, share_for
from blu_export.errors import BluError
from blu_export.extras import import_extra
from blu_export.workers.channel import error_as_json, error_from_json


def run_on_ray(job: Job, shards: Sequence[Shard], workers: int | None, address: str) -> Iterator[Event]:
    """Process shards in actors of a cluster. Photos and sink must be reachable from all of its machines.

    Args:
        job: its model is copied to them.
        shards: to be processed.
        workers: actors; None: one per machine.
        address: of the cluster.

    Until the iterator ends, stdout goes to stderr.

    Raises:
        BluError: the job cannot go on.
    """
    ray = connect(address)
    share = share_for(address, Path(job.model), job.options.device, workers, job.options.threads)
    data = import_extra("ray.data")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and timings; ours are in the report
    model = ray.put(model_files(Path(job.model), job.options.config))
    job = job.with_threads(job.options.threads or share.cpus)
    tasks = [{"shard": json.dumps([shard.index, shard.photos])} for shard in shards]
    done = data.from_items(tasks, override_num_blocks=len(tasks)).map_batches(
        ShardActor,
        fn_constructor_args=(job, model),
        batch_size=1,
        compute=data.ActorPoolStrategy(size=min(share.workers, len(tasks))),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    # Ray prints what happens to the cluster on stdout, which is for results.
    with redirect_stdout(sys.stderr):
        for each in done.iter_rows():
            answer = json.loads(each["answer"])
            if "error" in answer:
                raise error_from_json(answer["error"])
            summary = Summary(**answer)
            yield Event(summary.index, summary.photos, summary)


class ShardActor:
    """Ray Data calls it with a batch of one shard; the answer is its summary."""

    def __init__(self, job: Job, model: Any) -> None:
        self._worker = Worker(job, files=lambda: model_folder(import_extra("ray").get(model)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See run_on_ray."""
        (text,) = batch["shard"]
        index, photos = json.loads(text)
        try:
            answer = self._worker.run(Shard(index, tuple(photos))).to_json()
        except BluError as error:  # a value: Ray would try an exception again
            answer = json.dumps({"error": error_as_json(error)})
        return {"answer": np.array([answer], dtype=np.object_)}
