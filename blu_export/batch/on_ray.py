"""Shards on a Ray cluster: Ray Data with a pool of actors, each of which owns a worker process.

Ray starts actors and nodes' work again when those are lost; a worker process that dies is its actor's matter.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from blu_export.batch.local import Event
from blu_export.batch.plan import Shard
from blu_export.batch.process import Job, Worker
from blu_export.batch.shard import Summary
from blu_export.errors import BluError, MissingDependencyError, UsageError
from blu_export.extras import import_extra
from blu_export.serve.worker import error_as_json, error_from_json


@dataclass(frozen=True)
class Share:
    """What a worker takes of the cluster."""

    workers: int
    cpus: int
    gpus: int


def connect(address: str) -> Any:
    """Connect this process to a cluster; ``local`` starts one on this machine. Returns the module ray.

    Raises:
        UsageError: there is none at that address.
        MissingDependencyError: it does not start here.
    """
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # read on import; held-back lines would come out on stdout at the end
    ray = import_extra("ray")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default, without its warning
    try:
        if not ray.is_initialized():
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, configure_logging=False)
    except (ConnectionError, ValueError) as error:
        raise UsageError(
            f"There is no Ray cluster at '{address}' ({error}).", "Start one with: ray start --head"
        ) from error
    except Exception as error:  # Ray has no class of its own for a node that does not start
        raise MissingDependencyError(f"Ray does not start: {error}", "Look at the logs of its session.") from error
    return ray


def share_for(job: Job, workers: int | None, address: str) -> Share:
    """What the workers of a job take of the cluster at an address; see ``divide``."""
    return divide(connect(address).nodes(), workers, job.threads, wants_gpu(Path(job.model), job.device))


def run_on_ray(job: Job, shards: Sequence[Shard], workers: int | None, address: str) -> Iterator[Event]:
    """Work off shards in actors of a cluster. Photos and sink must be reachable from all of its machines.

    Args:
        job: its model is copied to them.
        shards: to be worked off.
        workers: actors; None: one per machine.
        address: of the cluster.

    Until the iterator ends, stdout goes to stderr.

    Raises:
        BluError: the job cannot go on.
    """
    ray = connect(address)
    share = share_for(job, workers, address)
    data = import_extra("ray.data")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its plans and timings; ours are in the report
    model = ray.put(model_files(Path(job.model)))
    job = replace(job, threads=job.threads or share.cpus)
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
                raise error_from_json(*answer["error"])
            summary = Summary(**answer)
            yield Event(summary.index, summary.photos, summary)


def wants_gpu(model: Path, device: str | None) -> bool:
    """Whether a worker with this model needs a GPU to itself."""
    return (device or "").startswith("cuda") or model.suffix.lower() == ".engine"


def divide(nodes: Sequence[dict[str, Any]], workers: int | None, threads: int | None, on_gpu: bool) -> Share:
    """How workers share the machines of a cluster.

    Args:
        nodes: as ``ray.nodes()`` tells them.
        workers: None: one per machine, or per GPU.
        threads: CPUs of each worker; None: its part of the smallest machine.
        on_gpu: each needs a GPU.

    Raises:
        UsageError: that many do not fit.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    places = [resources for resources in alive if resources.get("GPU" if on_gpu else "CPU", 0) >= 1]
    if not places:
        raise UsageError(f"No machine of the cluster has a {'GPU' if on_gpu else 'CPU'}.", "Look at: ray status")
    gpus = sum(int(resources.get("GPU", 0)) for resources in places)
    workers = workers or (gpus if on_gpu else len(places))
    smallest = min(int(resources.get("CPU", 0)) for resources in places)
    cpus = threads or max(1, smallest // math.ceil(workers / len(places)))
    if sum(int(resources.get("CPU", 0)) // cpus for resources in places) < workers or (on_gpu and gpus < workers):
        raise UsageError(
            f"{workers} workers of {cpus} CPUs{' and a GPU' * on_gpu} each do not fit into this cluster.",
            "Ask for fewer, or lower --threads.",
        )
    return Share(workers, cpus, int(on_gpu))


def model_files(model: Path) -> dict[str, bytes]:
    """The model and, for an engine, its sidecar."""
    sidecar = model.with_name(model.name + ".json")
    return {path.name: path.read_bytes() for path in (model, sidecar) if path.is_file()}


class ShardActor:
    """Ray Data calls it with a batch of one shard; the answer is its summary."""

    def __init__(self, job: Job, model: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="blu-batch-")
        for name, content in import_extra("ray").get(model).items():
            Path(self._folder.name, name).write_bytes(content)
        self._worker = Worker(replace(job, model=os.path.join(self._folder.name, Path(job.model).name)))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """See run_on_ray."""
        (text,) = batch["shard"]
        index, photos = json.loads(text)
        try:
            answer = self._worker.run(Shard(index, tuple(photos))).to_json()
        except BluError as error:  # a value: Ray would try an exception again
            answer = json.dumps({"error": error_as_json(error)})
        return {"answer": np.array([answer], dtype=np.object_)}
