"""Worker: the owner's side of a worker process, which it starts again when it dies.

A photo that kills workers costs its shard two more attempts and itself an error, not the job.
"""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from blu_export.batch.plan import Shard
from blu_export.batch.shard import Summary
from blu_export.cluster import config_in
from blu_export.errors import BluError
from blu_export.runtime.options import RunnerOptions
from blu_export.workers.channel import ClosedError
from blu_export.workers.owner import Child

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds without a word from a worker, loading or between two photos, after which it is considered hung."""
ATTEMPTS = 2
"""Deaths of a worker on one photo that make it the photo's fault; the first may have an outside cause."""
LOOSE_DEATHS = 3
"""Deaths in a row that no photo can be blamed for; then the job ends."""


@dataclass(frozen=True, kw_only=True)
class Detecting:
    """How the photos of a job are processed: what its settings and its workers have in common."""

    batch: int = 1
    """Canvases per call of the network."""
    min_score: float = 0.0
    tile: int | None = None
    """Also look at photos in tiles of this many pixels."""
    overlap: float = 0.2
    """Of neighboring tiles, a share of their side."""
    options: RunnerOptions = field(default_factory=lambda: RunnerOptions(precision="auto"))
    """How the model file is run."""
    max_pixels: int | None = None
    bits: int | None = None
    """The two above are about photos, see ``image.decode``."""
    loader: str = "blu_export.runtime:load_runner"
    """``module:function`` that loads the model; tests bring their own."""

    def detecting(self) -> dict[str, Any]:
        """The fields of this class by name."""
        return {each.name: getattr(self, each.name) for each in fields(Detecting)}


@dataclass(frozen=True)
class Job(Detecting):
    """What every worker of a job must know."""

    model: str
    """Path of the model file."""
    model_sha256: str
    sink: str

    def with_threads(self, threads: int) -> Job:
        """The same job with this many threads for each network."""
        return replace(self, options=replace(self.options, threads=threads))


class DiedError(Exception):
    """A worker process ended or hung; ``photo`` is the number of the one that it worked on, if that is known."""

    def __init__(self, why: str, photo: int | None = None) -> None:
        super().__init__(why)
        self.photo = photo


class Worker:
    """Processes shards in a process of its own.

    Args:
        job: what it must know.
        patience: seconds that it may stay silent once the model is loaded.
        files: gives a folder with the model, for as long as a process loads it; None: it lies where the job says.
    """

    def __init__(
        self,
        job: Job,
        patience: float = PATIENCE,
        files: Callable[[], AbstractContextManager[Path]] | None = None,
    ) -> None:
        self.job = job
        self._patience = patience
        self._is_here = files is None
        self._files = files or (lambda: nullcontext(Path(job.model).parent))
        self._child: Child | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._child is None else self._child.pid

    def run(self, shard: Shard, progress: Callable[[int], None] = lambda done: None) -> Summary:
        """Have a shard's file written.

        Args:
            shard: its photos.
            progress: called with the number of its photos that are done; it may start again from 0.

        Raises:
            BluError: the job cannot go on: the model does not load, the sink cannot be written to, …
        """
        suspects: Counter[int] = Counter()
        skip: dict[str, str] = {}
        loose, careful = 0, False
        while True:
            try:
                return self._attempt(shard, careful, skip, progress)
            except DiedError as error:
                self._stop()
                if self._closed:
                    raise BluError("The job was stopped.", "Start it again to go on.") from error
                log.warning("a worker died in shard %d: %s", shard.index, error)
                if error.photo is None:
                    # Without care many photos are under way at once: the shard goes on photo by photo.
                    loose += 1
                else:
                    loose = 0
                    suspects[error.photo] += 1
                    if suspects[error.photo] == ATTEMPTS:
                        skip[shard.photos[error.photo]] = f"The worker died on this photo, {ATTEMPTS} times: {error}."
                if loose == LOOSE_DEATHS:
                    raise BluError(
                        f"Workers keep dying in shard {shard.index} ({error}).",
                        "Try the model with: blu infer PHOTO -m MODEL",
                    ) from error
                careful = True

    def close(self) -> None:
        """End the process; a ``run`` under way in another thread ends with an error."""
        self._closed = True
        if (child := self._child) is not None:
            child.kill()

    def _attempt(self, shard: Shard, careful: bool, skip: dict[str, str], progress: Callable[[int], None]) -> Summary:
        child = self._child or self._start()
        request = {"index": shard.index, "photos": shard.photos, "careful": careful, "skip": skip}
        photo: int | None = None
        try:
            child.channel.send(**request)
            while True:
                match child.channel.receive(self._patience):
                    case {"start": int(number)}:
                        photo = number
                    case {"done": int(done)}:
                        photo = None
                        progress(done)
                    case {"summary": dict(values)}:
                        return Summary(**values)
        except TimeoutError:
            raise DiedError(f"it sent nothing for {self._patience:g} s", photo) from None
        except ClosedError:
            raise DiedError(self._how(child), photo) from None

    def _start(self) -> Child:
        """A process with the model loaded."""
        with self._files() as folder:
            options = self.job.options
            if not self._is_here:
                options = replace(options, config=config_in(folder, options.config))
            job = replace(self.job, model=str(folder / Path(self.job.model).name), options=options)
            child = self._child = Child("blu_export.batch.worker:main", asdict(job))
            if self._closed:  # meanwhile: close did not see this process
                child.kill()
            try:
                child.channel.receive(PATIENCE)
            except TimeoutError:
                raise DiedError(f"the model was not loaded within {PATIENCE:g} s") from None
            except ClosedError:
                raise DiedError(self._how(child)) from None
        return child

    def _how(self, child: Child) -> str:
        """How the process ended."""
        code = child.wait(self._patience)
        if code is None:
            return "it closed its end"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._stop()


def child_threads(threads: int | None, workers: int) -> int:
    """Threads of each network when several share this machine."""
    from blu_export.runtime.cpu import usable_cores

    return threads or max(1, usable_cores() // workers)
