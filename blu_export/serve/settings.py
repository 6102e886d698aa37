"""ServeSettings: everything that ``blu serve`` can be told, with its limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from blu_export.contract import MAX_PHOTO_PIXELS
from blu_export.errors import UsageError
from blu_export.runtime.options import RunnerOptions

MEGABYTE = 2**20
WHOLE = {
    "max_batch": 1024,
    "queue": 2**16,
    "max_upload": 2**30,
    "upload_memory": 2**40,
    "answer_memory": 2**40,
    "max_pixels": 10**9,
    "max_json": 2**28,
    "workers": 256,
    "max_connections": 2**20,
}
"""Setting -> the largest that can be meant; each is at least 1."""


@dataclass(frozen=True)
class ServeSettings:
    """How a model is served. Times are seconds, sizes bytes."""

    model: Path
    """Model file: .onnx, .engine, .h5 or .keras."""
    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free port."""
    grpc_port: int | None = None
    """Serve the Open Inference Protocol over gRPC too; None: HTTP only."""
    options: RunnerOptions = field(default_factory=RunnerOptions)
    """How the model file is run."""

    max_batch: int = 4
    """Canvases in the network at a time, at most; on a processor no more than it has cores."""
    batch_delay: float = 0.0
    """How long the first photo of a batch waits for others while the device is idle."""
    queue: int = 64
    """Photos in the server at once, from the end of their upload to the end of their answer."""
    max_wait: float = 5.0
    """A photo is admitted only if the work ahead of it takes no longer, by estimate: late answers help no one,
    and after an overload the server recovers this soon."""
    timeout: float = 30.0
    """From the first byte of a request to its result, the queue included. A batch that keeps the device
    for longer helps no one: the worker is considered hung and restarted."""
    max_upload: int = 20 * MEGABYTE
    """Bytes of a request's body."""
    upload_memory: int = 512 * MEGABYTE
    """Bytes of all bodies in memory at once; over gRPC as many again."""
    answer_memory: int = 512 * MEGABYTE
    """Bytes of all answers that wait for their clients to read them."""
    max_pixels: int = MAX_PHOTO_PIXELS
    """Pixels of a photo, checked before it is decoded."""
    max_json: int = MEGABYTE
    """Bytes of JSON in a request. Parsing it takes many times its size; photos travel beside it."""
    workers: int = 2
    """Processes that decode, and as many threads that un-mold."""

    reload: bool = False
    """Watch the model file and take over a new one."""
    api_keys: tuple[str, ...] = ()
    """Any one of them opens the server; none: open to all."""
    cors: tuple[str, ...] = ()
    """Origins (``https://example.org``) whose pages may use the server; ``*``: any. None: only its own."""
    notice: float = 3.0
    """After SIGTERM, how long the server goes on as before while ``ready`` says 503."""
    drain: float = 30.0
    """After SIGTERM, how long work in flight may take."""
    head_timeout: float = 10.0
    """How long a client may take to send the head of a request."""
    message_timeout: float = 10.0
    """How long the message of a gRPC call may take, once it is its turn."""
    send_timeout: float = 30.0
    """How long a client may take no byte of its answer; over gRPC, how long it may take to read all of it."""
    max_connections: int = 4096
    """Open at once; over gRPC as many calls."""
    loader: str = "blu_export.runtime:load_runner"
    """``module:function`` that loads the model in the worker process; tests bring their own."""

    def __post_init__(self) -> None:
        for name, most in WHOLE.items():
            if not 1 <= getattr(self, name) <= most:
                raise UsageError(f"{name} must be 1 to {most:,}, not {getattr(self, name):,}.")
        for origin in self.cors:
            if origin != "*" and not re.fullmatch(r"https?://[^/\s?#@]+", origin):
                raise UsageError(f"{origin!r} is not an origin.", "Write scheme and host: https://example.org")
        for name in ("max_wait", "timeout", "drain", "head_timeout", "message_timeout", "send_timeout"):
            if not 0 < getattr(self, name) <= 3600:
                raise UsageError(f"{name} must be above 0 and at most an hour, not {getattr(self, name)} s.")
        for name in ("batch_delay", "notice"):
            if not 0 <= getattr(self, name) <= 60:
                raise UsageError(f"{name} must be 0 to 60 s, not {getattr(self, name)}.")
        for name in ("port", "grpc_port"):
            if not 0 <= (getattr(self, name) or 0) <= 65535:
                raise UsageError(f"Invalid port: {getattr(self, name)}.")


def read_api_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file: one per line; empty lines and lines that start with # do not count.

    Raises:
        UsageError: the file cannot be read, holds no key, or one that is too short to be a secret.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"The key file {path} cannot be read: {reason}.", "Write one key per line.") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path} holds no key.", "Write one per line; make one with: openssl rand -hex 32")
    if any(len(key) < 16 or not key.isascii() or not key.isprintable() or " " in key for key in keys):
        raise UsageError(
            f"A key in {path} is shorter than 16 characters, or not plain ASCII.",
            "Make one with: openssl rand -hex 32",
        )
    return keys
