"""Structured logs: a line of JSON per event on stderr; on a terminal a line for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that is being answered."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


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


def set_up() -> None:
    """Send the logs of this package and of uvicorn to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter() if sys.stderr.isatty() else JsonFormatter())
    for name, level in (("blu_export", logging.INFO), ("uvicorn", logging.WARNING), ("asyncio", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False


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
