"""Worker: the owner's side of a worker process, which it starts again when it dies.

A photo that kills workers costs its shard two more attempts and itself an error, not the job.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blu_export.batch.plan import Shard
from blu_export.batch.shard import Summary
from blu_export.errors import BluError
from blu_export.serve.worker import error_from_json

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds without a word from a worker, loading or between two photos, after which it is taken for hung."""
ATTEMPTS = 2
"""Deaths of a worker on one photo that make it the photo's fault; the first may have come from outside."""
LOOSE_DEATHS = 3
"""Deaths in a row that no photo can be blamed for; then the job ends."""


@dataclass(frozen=True)
class Job:
    """What every worker of a job must know."""

    model: str
    """Path of the model file."""
    model_sha256: str
    sink: str
    batch: int = 1
    """Canvases per call of the network."""
    min_score: float = 0.0
    runtime: str = "auto"
    precision: str = "auto"
    device: str | None = None
    threads: int | None = None
    loader: str = "blu_export.runtime:load_runner"
    """``module:function`` that loads the model; tests bring their own."""

    def to_json(self) -> str:
        """One line, as the worker takes it."""
        values = dataclasses.asdict(self)
        values["options"] = {key: values.pop(key) for key in ("runtime", "precision", "device", "threads")}
        return json.dumps(values)


class DiedError(Exception):
    """A worker process ended or hung; ``photo`` is the number of the one that it worked on, if that is known."""

    def __init__(self, why: str, photo: int | None = None) -> None:
        super().__init__(why)
        self.photo = photo


class Worker:
    """Works off shards in a process of its own.

    Args:
        job: what it must know.
        patience: seconds that it may say nothing once the model is loaded.
    """

    def __init__(self, job: Job, patience: float = PATIENCE) -> None:
        self.job = job
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._received = b""
        self._closed = False

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        return None if self._process is None else self._process.pid

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
                        f"Workers die in shard {shard.index} ({error}).", "Try the model with: blu infer PHOTO -m MODEL"
                    ) from error
                careful = True

    def close(self) -> None:
        """End the process; a ``run`` under way in another thread ends with an error."""
        self._closed = True
        if (process := self._process) is not None:
            process.kill()

    def _attempt(self, shard: Shard, careful: bool, skip: dict[str, str], progress: Callable[[int], None]) -> Summary:
        if self._process is None:
            self._start()
        request = {"index": shard.index, "photos": shard.photos, "careful": careful, "skip": skip}
        self._send(json.dumps(request))
        photo: int | None = None
        while True:
            said = self._receive(photo)
            match said:
                case {"start": int(number)}:
                    photo = number
                case {"done": int(done)}:
                    photo = None
                    progress(done)
                case {"summary": dict(values)}:
                    return Summary(**values)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "blu_export.batch.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        ours.settimeout(PATIENCE)
        self._socket, self._received = ours, b""
        if self._closed:  # meanwhile: close did not see this process
            self._process.kill()
        self._send(self.job.to_json())
        self._receive(None)
        ours.settimeout(self._patience)

    def _send(self, text: str) -> None:
        assert self._socket is not None
        try:
            self._socket.sendall(text.encode() + b"\n")
        except OSError as error:
            raise DiedError(self._how()) from error

    def _receive(self, photo: int | None) -> dict[str, Any]:
        assert self._socket is not None
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise DiedError(f"it said nothing for {self._socket.gettimeout():g} s", photo) from None
            except OSError:
                data = b""
            if not data:
                raise DiedError(self._how(), photo)
            self._received += data
        text, _, self._received = self._received.partition(b"\n")
        said: dict[str, Any] = json.loads(text)
        if "error" in said:
            raise error_from_json(*said["error"])
        return said

    def _how(self) -> str:
        """How the process ended."""
        assert self._process is not None
        try:
            code = self._process.wait(self._patience)
        except subprocess.TimeoutExpired:
            return "it closed its end"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._socket is not None:
            self._socket.close()
        self._process = self._socket = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        self._stop()


def child_threads(threads: int | None, workers: int) -> int:
    """Threads of each network when several share this machine."""
    from blu_export.runtime.cpu import usable_cores

    return threads or max(1, usable_cores() // workers)
