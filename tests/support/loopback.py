"""Real servers on loopback with the fake model, photos whose detections are known, and questions to ask."""

from __future__ import annotations

import io
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from fake_runner import write_model
from PIL import Image

HERE = Path(__file__).parent
PATIENCE = 60
"""Seconds until a server that does not do what it should fails the test."""


def png(color: tuple[int, int, int] = (51, 51, 51), height: int = 48, width: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), color, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def gray(level: int) -> bytes:
    return png((level, level, level))


@dataclass
class Running:
    """A server process and what its log says."""

    process: subprocess.Popen[bytes]
    model: Path
    port: int = 0
    grpc_port: int = 0
    workers: list[int] = field(default_factory=list)
    """Process ids of the workers, the last one the current."""
    lines: list[dict[str, Any]] = field(default_factory=list)
    _new: queue.SimpleQueue[dict[str, Any] | None] = field(default_factory=queue.SimpleQueue)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        # verify: without it every client reads the system's certificates, which takes longer than most tests.
        return httpx.Client(base_url=self.url, timeout=PATIENCE, verify=False)

    def post(self, body: bytes, path: str = "/v1/predict", **headers: str) -> httpx.Response:
        """A request on a connection of its own."""
        with self.client() as client:
            return client.post(path, content=body, headers=headers)

    def wait_for(self, event: str, **fields: Any) -> dict[str, Any]:
        """The next line of the log with that event, and these fields."""
        while True:
            line = self._new.get(timeout=PATIENCE)
            assert line is not None, f"the server ended without '{event}': {self.lines}"
            if line["event"] == event and fields.items() <= line.items():
                return line

    def read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as log:
            for raw in log:
                try:
                    line = json.loads(raw)
                except ValueError:
                    line = {"event": "text", "text": raw.decode()}
                self.lines.append(line)
                if line["event"] in ("model ready", "worker restarted"):
                    self.workers.append(line["worker"])
                self._new.put(line)
        self._new.put(None)

    def pause(self) -> None:
        """Make the device stand still."""
        os.kill(self.workers[-1], signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.workers[-1], signal.SIGCONT)

    def decoders(self) -> list[int]:
        """Process ids of the decoders."""
        tasks = Path(f"/proc/{self.process.pid}/task").iterdir()
        every = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
        return [pid for pid in every if b"serve.decoder" in Path(f"/proc/{pid}/cmdline").read_bytes()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(PATIENCE)


Start = Callable[..., Running]


@contextmanager
def launching(folder: Path) -> Iterator[Start]:
    """A function that starts servers; all are gone at the end of the block."""
    servers: list[Running] = []
    readers: list[threading.Thread] = []

    def start(
        seconds: float = 0.0,
        shift: float = 0.0,
        spec: dict[str, Any] | None = None,
        limit_files: int | None = None,
        **settings: Any,
    ) -> Running:
        model = settings.pop("model", None)
        if model is None:
            parent = folder / str(len(servers))
            parent.mkdir()
            model = write_model(parent / "fake.onnx", seconds, shift, **(spec or {}))
        given = {"model": str(model), "port": 0, "notice": 0.0} | settings
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, HERE / "serve_fake.py", json.dumps(given)],
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            preexec_fn=limit_files and partial(resource.setrlimit, resource.RLIMIT_NOFILE, (limit_files, limit_files)),
        )
        server = Running(process, model)
        servers.append(server)
        readers.append(threading.Thread(target=server.read_log))
        readers[-1].start()
        listening = server.wait_for("listening")
        server.port, server.grpc_port = listening["port"], listening.get("grpc_port", 0)
        return server

    try:
        yield start
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait(PATIENCE)
        for reader in readers:
            reader.join(PATIENCE)


def metric(client: httpx.Client, name: str) -> float:
    """The value of a metric without labels."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split(" ")[1]) for line in lines if line.startswith(f"{name} "))


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again; every question is a request, which takes its time."""
    for _ in range(20_000):
        if condition():
            return
    raise AssertionError("it never came to that")
