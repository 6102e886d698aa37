"""What an owner and its worker say to each other: a line of JSON per message. Nothing is pickled."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

from blu_export.errors import BluError

MAX_LINE = 2**24
"""Bytes of a message: a spec may name 10,000 classes."""


class ClosedError(Exception):
    """The other side has closed its end, or is dead."""


class Channel:
    """One end of a connection. One thread may send while another receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._received = b""

    def send(self, **message: Any) -> None:
        """Send one message; raises ClosedError where no one takes it."""
        try:
            self._socket.sendall(to_line(message))
        except OSError as error:
            raise ClosedError from error

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """The next message; waits ``timeout`` seconds between two pieces of it, None: for ever.

        Raises:
            BluError: the message is an error.
            ClosedError: there is none any more.
            TimeoutError: it did not come.
        """
        self._socket.settimeout(timeout)
        while b"\n" not in self._received:
            try:
                data = self._socket.recv(2**16)
            except TimeoutError:
                raise
            except OSError as error:
                raise ClosedError from error
            if not data or len(self._received) > MAX_LINE:
                raise ClosedError
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return from_line(line)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Messages until the other side closes its end."""
        while True:
            try:
                yield self.receive()
            except ClosedError:
                return

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def to_line(message: dict[str, Any]) -> bytes:
    """A message as it goes over the connection."""
    return json.dumps(message).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """The inverse of to_line; raises the BluError that the message may be."""
    message: dict[str, Any] = json.loads(line)
    if "error" in message:
        raise error_from_json(message["error"])
    return message


def error_as_json(error: BluError) -> dict[str, Any]:
    """What error_from_json takes: the names of the error's classes, the nearest first, and its two sentences."""
    kinds = [kind.__name__ for kind in type(error).__mro__ if issubclass(kind, BluError)]
    return {"kinds": kinds, "what": error.what, "fix": error.fix}


def error_from_json(said: dict[str, Any]) -> BluError:
    """The error that a worker reported: of the nearest of its classes that this process has too."""
    known = {kind.__name__: kind for kind in _subclasses(BluError)}
    kind = next((known[name] for name in said["kinds"] if name in known), BluError)
    return kind(said["what"], said["fix"])


def _subclasses(kind: type[BluError]) -> Iterator[type[BluError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _subclasses(each)
