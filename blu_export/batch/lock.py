"""SinkLock: one driver at a time works on a sink."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
from contextlib import suppress
from typing import IO, Any

from blu_export.batch.sink import Sink
from blu_export.errors import DatasetError, UsageError

log = logging.getLogger(__name__)

LOCK_NAME = "_lock"
"""Readers of Parquet folders skip names that start with an underscore."""
BEAT = 10.0
"""Seconds between two signs of life in a bucket, which knows no locks."""
SILENCE = 35.0
"""Seconds without a sign after which a driver is considered dead."""


class SinkLock:
    """Held from the start of a driver to its end; a driver that is killed holds it no longer.

    In a folder it is a lock of the file system. In a bucket it is an object that changes every BEAT seconds.

    Raises:
        UsageError: another driver holds it.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._file: IO[bytes] | None = None
        self._beats: threading.Thread | None = None
        self._closed = threading.Event()
        self._mark = {"host": socket.gethostname(), "pid": os.getpid(), "token": secrets.token_hex(8)}
        if sink.folder is None:
            self._hold_object()
        else:
            self._hold_file(os.path.join(sink.folder, LOCK_NAME))

    def close(self) -> None:
        """Release it."""
        self._closed.set()
        if self._file is not None:
            with suppress(OSError):  # the folder may be gone
                os.unlink(self._file.name)
            self._file.close()
            self._file = None
        if self._beats is not None:
            self._beats.join()
            self._beats = None
            self._sink.remove(LOCK_NAME)

    def _hold_file(self, path: str) -> None:
        while self._file is None:
            try:
                os.makedirs(self._sink.url, exist_ok=True)
                file = open(path, "ab")  # noqa: SIM115 - held until close
            except OSError as error:
                reason = error.strerror or error
                raise DatasetError(
                    f"{path} cannot be written: {reason}.", "Check free space and permissions."
                ) from error
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The driver before may have removed the file between our two calls.
                if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    self._file = file
            except BlockingIOError:
                raise self._taken() from None
            finally:
                if self._file is None:
                    file.close()

    def _hold_object(self) -> None:
        before = self._seen()
        if before is not None:
            log.warning("another driver may be at work in %s; waiting %g s for a sign of it", self._sink.url, SILENCE)
            until = time.monotonic() + SILENCE
            while time.monotonic() < until:
                time.sleep(min(BEAT, SILENCE) / 4)
                if (now := self._seen()) is None:
                    break
                if now != before:
                    raise self._taken()
        self._beat(0)
        if (now := self._seen()) is None or now.get("token") != self._mark["token"]:
            raise self._taken()
        self._beats = threading.Thread(target=self._go_on, name="blu-lock", daemon=True)
        self._beats.start()

    def _go_on(self) -> None:
        count = 0
        while not self._closed.wait(BEAT):
            count += 1
            try:
                self._beat(count)
            except DatasetError as error:
                log.warning("%s", error)

    def _beat(self, count: int) -> None:
        self._sink.write(LOCK_NAME, json.dumps({**self._mark, "beat": count}).encode())

    def _seen(self) -> dict[str, Any] | None:
        """What the object says; None where there is none."""
        try:
            with self._sink.open(LOCK_NAME) as file:
                said = json.loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}

    def _taken(self) -> UsageError:
        return UsageError(
            f"Another blu batch is at work in {self._sink.url}.", "Wait for its end, or choose another sink."
        )
