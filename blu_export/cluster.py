"""Placement on the machines of a Ray cluster: for batch jobs and for servers alike."""

from __future__ import annotations

import fcntl
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blu_export.errors import MissingDependencyError, UsageError
from blu_export.extras import import_extra

FOLDER_PREFIX = "blu-model-"
LOCK_NAME = ".lock"


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


def share_for(address: str, model: Path, device: str | None, workers: int | None, threads: int | None) -> Share:
    """How workers with a model share the machines of the cluster at an address.

    Raises:
        UsageError: there is no such cluster, or it has no room for them.
        MissingDependencyError: Ray does not start here.
    """
    return divide(connect(address).nodes(), workers, threads, wants_gpu(model, device))


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


def model_files(model: Path, config: str | None = None) -> dict[str, bytes]:
    """The model and, for an engine, its sidecar; for Keras weights their settings file, where there is one.

    Raises:
        UsageError: there is no such settings file.
    """
    files = [path for path in (model, model.with_name(model.name + ".json")) if path.is_file()]
    if config is not None:
        files.append(_config_path(config)[0])
        if not files[-1].is_file():
            raise UsageError(f"There is no settings file {files[-1]}.", "Check the path.")
    return {path.name: path.read_bytes() for path in files}


def config_in(folder: Path, config: str | None) -> str | None:
    """A settings file, ``FILE.py`` or ``FILE.py:Class``, as it is named where ``model_files`` were written."""
    if config is None:
        return None
    path, chosen = _config_path(config)
    return f"{folder / path.name}{chosen}"


def _config_path(config: str) -> tuple[Path, str]:
    """The file, and ``:Class`` if it is given."""
    if Path(config).is_file() or ":" not in config:
        return Path(config), ""
    name, _, chosen = config.rpartition(":")
    return Path(name), f":{chosen}"


@contextmanager
def model_folder(contents: Mapping[str, bytes]) -> Iterator[Path]:
    """A folder with a model's files, for as long as a worker loads them.

    A process that is killed inside the block leaves its folder; the next one on that machine removes it.

    Args:
        contents: of the files, by name; see model_files.
    """
    _remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True) as folder:
        unlocked = Path(folder, f"{LOCK_NAME}-new")
        with open(unlocked, "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            unlocked.rename(unlocked.with_name(LOCK_NAME))  # never seen without its lock
            for name, content in contents.items():
                Path(folder, name).write_bytes(content)
            yield Path(folder)


def _remove_abandoned() -> None:
    """Remove folders of processes that were killed: those whose lock no one holds."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        try:
            with open(folder / LOCK_NAME, "rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, another user's, or just being made
            continue
