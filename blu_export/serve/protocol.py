"""HTTP connections with limits where uvicorn has none: heads, parser work, stalled readers, how many there are."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import re
import secrets
import sys
import termios
from collections import deque
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from blu_export.serve.settings import ServeSettings

log = logging.getLogger(__name__)

MAX_HEAD, MAX_LINES = 32 * 1024, 256
"""Bytes and lines of a request's head."""
PIECE = MAX_HEAD
"""Bytes that the parser is given at a time: never more than one head to look through."""
TURN = 16
"""Events of a turn, a millisecond or two: a head, a piece of a body, its end. Then others have theirs."""
FREE_EVENTS, MIN_PIECE = 1000, 64
"""A body whose pieces are smaller than MIN_PIECE bytes on average is refused, once it had FREE_EVENTS of them."""


_HEAD_END = re.compile(rb"\n\r?\n")


class Parser(h11.Connection):
    """h11's, which stops after TURN events as if it needed data, and refuses long heads and bodies in tiny pieces."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self.left = TURN
        self.hungry = True
        """Whether it really needs data; if not and ``left`` is 0, it waits for its next turn."""
        self._pieces = 0
        self._bytes = 0

    def next_event(self) -> Any:
        """See h11."""
        self.hungry = False
        if self.left == 0:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head()
        event = super().next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            self.hungry = event is h11.NEED_DATA
            return event
        self.left -= 1
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_EVENTS + self._bytes // MIN_PIECE:
                raise h11.RemoteProtocolError("The body comes in too small pieces.")
        return event

    def _check_head(self) -> None:
        """Before h11 looks at its lines, which takes 4 µs for each."""
        head = _HEAD_END.split(self.trailing_data[0], maxsplit=1)[0]
        if len(head) > MAX_HEAD or head.count(b"\n") > MAX_LINES:
            raise h11.RemoteProtocolError("The head is too long.")


class Turns:
    """Connections that wait for their parser's next turn: one a round of the event loop, so that others go on."""

    def __init__(self) -> None:
        self._waiting: deque[GuardedProtocol] = deque()

    def add(self, protocol: GuardedProtocol) -> None:
        """Its turn comes."""
        self._waiting.append(protocol)
        if len(self._waiting) == 1:
            protocol.loop.call_soon(self._next)

    def _next(self) -> None:
        protocol = self._waiting[0]
        try:
            protocol.take_turn()
        finally:
            self._waiting.popleft()
            if self._waiting:
                protocol.loop.call_soon(self._next)


class Flow(FlowControl):
    """Reading pauses while uvicorn or the parser has enough."""

    _theirs = _ours = False

    def pause_reading(self) -> None:
        """Of uvicorn."""
        self._theirs = True
        self._apply()

    def resume_reading(self) -> None:
        """Of uvicorn."""
        self._theirs = False
        self._apply()

    def hold(self, held: bool) -> None:
        """Whether the parser has enough."""
        self._ours = held
        self._apply()

    def _apply(self) -> None:
        if self._ours or self._theirs:
            super().pause_reading()
        else:
            super().resume_reading()


class GuardedProtocol(H11Protocol):
    """A connection; ``guarded_protocol`` gives it its settings."""

    settings: ServeSettings
    turns: Turns
    idle: dict[GuardedProtocol, None]
    """Connections of the server without a request, the one that has waited longest first."""
    flow: Flow
    conn: Parser
    _head_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = Parser()
        self._rest = bytearray()
        """What has come and the parser does not have yet."""
        self._waits = False
        """For its turn."""

    def connection_made(self, transport: Any) -> None:
        """Where there are too many, close the one that has been idle for longest; if none is, this one."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        if len(self.connections) > self.settings.max_connections:
            log.warning("too many connections", extra={"limit": self.settings.max_connections})
            oldest = next(iter(self.idle), self)
            self.idle.pop(oldest, None)
            oldest.transport.abort()
            if oldest is self:
                return
        # Every byte counts as waiting: send() returns when all is with the system, and the timer sees the rest.
        transport.set_write_buffer_limits(high=0)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Parse what has come, as far as this turn goes."""
        self._unset_keepalive_if_required()
        self._rest += data
        if not self._waits:
            self.conn.left = TURN
            self.handle_events()
        self._watch_head()

    def take_turn(self) -> None:
        """Parse on."""
        self._waits = False
        if not self.transport.is_closing():
            self.conn.left = TURN
            self.handle_events()
            self._watch_head()

    def handle_events(self) -> None:
        """Let the parser work until it needs data that is not here, is paused, or has had its turn."""
        super().handle_events()
        while self._rest and self.conn.hungry and not self.transport.is_closing():
            piece = bytes(self._rest[:PIECE])
            del self._rest[:PIECE]
            self.conn.receive_data(piece)
            super().handle_events()
        if self.conn.left == 0 and not self.conn.hungry and not self._waits:
            self._waits = True
            self.turns.add(self)
        if not self.transport.is_closing():
            self.flow.hold(self._waits or bool(self._rest))

    def send_400_response(self, msg: str) -> None:
        """Say that it is not HTTP, where no answer has begun, and end the request that may have."""
        if self._answering:  # or it would answer on a connection that has its answer
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        current = secrets.token_hex(8)
        error = {
            "code": "bad_request",
            "message": msg,
            "fix": "Send HTTP/1.1, with a head of at most 32 kB and 256 lines, and a body in larger pieces.",
        }
        body = json.dumps({"error": error, "request_id": current}).encode()
        headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
            ("X-Request-Id", current),
            ("Connection", "close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget its timers."""
        super().connection_lost(exc)
        self.idle.pop(self, None)
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()

    def pause_writing(self) -> None:
        """The client has to read before more can be written."""
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        """It has."""
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _watch_reader(self) -> None:
        """Cut the client off if it has read nothing after ``send_timeout`` seconds; else look again."""
        before = _unread(self.transport)

        def look() -> None:
            if _unread(self.transport) < before:
                self._watch_reader()
            else:
                self.transport.abort()

        self._send_timer = self.loop.call_later(self.settings.send_timeout, look)

    def on_response_complete(self) -> None:
        """The connection is idle, unless its next request is here already."""
        super().on_response_complete()
        if not self._answering and not self.transport.is_closing():
            self.idle[self] = None

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _watch_head(self) -> None:
        """Between requests a started head, or the rest of an answered body, has ``head_timeout`` seconds."""
        answering = self._answering
        if answering:
            self.idle.pop(self, None)
        elif not self.transport.is_closing():
            self.idle.setdefault(self)
        if answering and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
        elif not answering and self._head_timer is None:
            self._head_timer = self.loop.call_later(self.settings.head_timeout, self.transport.abort)


def guarded_protocol(settings: ServeSettings) -> type[GuardedProtocol]:
    """The protocol class of one server."""
    return type("GuardedProtocol", (GuardedProtocol,), {"settings": settings, "turns": Turns(), "idle": {}})


def _unread(transport: Any) -> int:
    """Bytes that the client has not taken: ours, and on Linux the system's.

    The system may hold megabytes, and takes more of ours only when a third of them is gone: without its share a slow
    reader looks like one that does not read.
    """
    waiting: int = transport.get_write_buffer_size()
    if sys.platform == "linux":
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        waiting += int.from_bytes(answer, sys.byteorder)
    return waiting
