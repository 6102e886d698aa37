"""Structured logs: a line of JSON per event on stderr; on a terminal a line for people.

Serving never waits for the reader of stderr: a thread writes the lines, and what does not fit is dropped and counted.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import secrets
import sys
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""

log = logging.getLogger(__name__)

MAX_WAITING = 2**20
"""Bytes of lines that wait to be written; what finds no room is dropped."""
MAX_LINES = 100
"""Lines of a worker or decoder that are told in a second."""
MAX_KINDS = 1000
"""Of warnings that OncePerSecond keeps apart."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def id_of_request(given: str | None) -> str:
    """The id that a client gave its request, where it is one; else a new one."""
    return given if given and _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "event": …, "request_id": …, …}``; everything in ``extra`` is a field."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter.format."""
        return json.dumps(_fields(self, record), default=str)


class PlainFormatter(logging.Formatter):
    """``12:00:00 info request status=200 …``."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter.format."""
        fields = _fields(self, record)
        head = f"{str(fields.pop('time'))[11:19]} {fields.pop('level'):7} {fields.pop('event')}"
        fields.pop("logger")
        # ascii: a client chooses paths and ids, and may not write on the operator's terminal with them.
        tail = " ".join(
            f"{key}={value if isinstance(value, int | float) else ascii(value)}" for key, value in fields.items()
        )
        return f"{head}  {tail}" if tail else head


class Writer:
    """Lines on their way to a file descriptor, by a thread of its own; MAX_WAITING bytes of them may wait."""

    def __init__(self, descriptor: int) -> None:
        self.dropped = 0
        """Lines that found no room."""
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._waiting = 0
        """Bytes, those that are being written included."""
        self._changed = threading.Condition()
        threading.Thread(target=self._write, name="blu-log", daemon=True).start()

    def put(self, line: str) -> None:
        """Have a line written, some time."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._waiting + len(data) > MAX_WAITING:
                self.dropped += 1
                return
            self._lines.append(data)
            self._waiting += len(data)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait until everything is written, but no longer than that; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting, seconds)

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines)
                data = self._lines.popleft()
            size = len(data)
            with suppress(OSError):  # closed: no one reads it any more
                while data:
                    data = data[os.write(self._descriptor, data) :]
            with self._changed:
                self._waiting -= size
                self._changed.notify_all()


class LineHandler(logging.Handler):
    """Formats a record where it happens, with the request's id, and gives it to the writer."""

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler.emit."""
        self.writer.put(self.format(record))


class OncePerSecond(logging.Filter):
    """Warnings and errors that say the same, at most once a second; ``repeated`` says how many were left out before."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[object, tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter.filter."""
        if record.levelno < logging.WARNING:
            return True
        fields = [f"{key}={value}" for key, value in vars(record).items() if key not in _STANDARD and key[0] != "_"]
        kind = (record.name, record.msg, record.exc_info and record.exc_info[0], *fields)
        last, left_out = self._seen.get(kind, (float("-inf"), 0))
        if record.created - last < 1:
            self._seen[kind] = last, left_out + 1
            return False
        if len(self._seen) >= MAX_KINDS:
            self._seen.clear()
        self._seen[kind] = record.created, 0
        if left_out:
            record.repeated = left_out
        return True


class ProcessLines:
    """What a worker or decoder writes to stdout and stderr, as lines of our log; MAX_LINES a second are told.

    Args:
        source: how the log names it.
    """

    dropped = 0
    """Lines that were too many, of all processes."""
    _lock = threading.Lock()

    def __init__(self, source: str) -> None:
        self._source = source
        self._second, self._told = 0, 0

    def __call__(self, line: bytes) -> None:
        """Log a line, or count it."""
        if not line.strip():
            return
        if (second := int(time.monotonic())) != self._second:
            self._second, self._told = second, 0
        self._told += 1
        if self._told > MAX_LINES:
            with self._lock:
                ProcessLines.dropped += 1
            return
        log.warning("stderr", extra={"source": self._source, "text": line.decode("utf-8", "backslashreplace")})


def set_up() -> None:
    """Send all logs, and Python's warnings once a kind, to stderr."""
    handler = LineHandler(_writer())
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    handler.addFilter(OncePerSecond())
    for name, level in (("", logging.WARNING), ("blu_export", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    warn_once()


def warn_once() -> None:
    """Log Python's warnings, each place in the code that gives one for its first time only.

    Python itself keeps every text that it has shown: those of Pillow hold numbers out of the file.
    """
    told: set[tuple[str, int]] = set()

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *others: object) -> None:
        if (filename, lineno) not in told:
            told.add((filename, lineno))
            fields = {"kind": category.__name__, "text": str(message)[:500], "place": f"{filename}:{lineno}"}
            log.warning("warning", extra=fields)

    warnings.showwarning = show  # type: ignore[assignment]
    for category in (UserWarning, RuntimeWarning):
        warnings.simplefilter("always", category)


def flush() -> None:
    """Before the process ends: a second for what waits to be written."""
    if _writers:
        _writer().flush(1.0)


def dropped() -> int:
    """Lines that were not written, since no one read those before or a worker or decoder wrote too many."""
    return sum(each.dropped for each in _writers) + ProcessLines.dropped


_writers: list[Writer] = []
"""The one of this process, once there is one."""


def _writer() -> Writer:
    if not _writers:
        _writers.append(Writer(sys.stderr.fileno()))
        atexit.register(flush)
    return _writers[0]


def _fields(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, object]:
    seconds = time.gmtime(record.created)
    fields: dict[str, object] = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', seconds)}.{int(record.msecs):03}Z",
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
    }
    if (current := request_id.get()) is not None:
        fields["request_id"] = current
    fields |= {key: value for key, value in vars(record).items() if key not in _STANDARD}
    if record.exc_info:
        fields["traceback"] = formatter.formatException(record.exc_info)
    return fields
