"""HTTP on the wire: how much parser work a connection gets, how long heads may be, well-behaved clients beside it."""

from __future__ import annotations

import json
import socket
from contextlib import suppress

import h11
import pytest
from loopback import PATIENCE, Running, Start, gray, png

from blu_export.serve.protocol import FREE_EVENTS, MAX_HEAD, MAX_LINES, TURN, Parser

CHUNKED = b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


def exchange(server: Running, *data: bytes) -> bytes:
    """Everything that the server answers until it closes."""
    found = b""
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as sock:
        with suppress(OSError):  # it may close before it has read everything
            for each in data:
                sock.sendall(each)
        with suppress(OSError):
            while more := sock.recv(2**16):
                found += more
    return found


def chunks(body: bytes, size: int) -> bytes:
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in pieces) + b"0\r\n\r\n"


def test_the_parser_stops_after_its_turn_and_goes_on_at_the_next() -> None:
    parser = Parser()
    parser.receive_data(CHUNKED + b"1\r\nx\r\n" * 40)
    events = []
    for _ in range(3):
        parser.left = TURN
        while (event := parser.next_event()) is not h11.NEED_DATA:
            events.append(type(event))
    assert (len(events), parser.hungry) == (41, True)


@pytest.mark.parametrize("chunk", [b"1\r\nx\r\n", b"1;note=long\r\nx\r\n", b"8\r\nxxxxxxxx\r\n"])
def test_a_body_of_crumbs_is_refused(shared_server: Running, chunk: bytes) -> None:
    answer = exchange(shared_server, CHUNKED, chunk * (3 * FREE_EVENTS))
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""  # reset, where the client still sends
    assert shared_server.post(gray(51)).status_code == 200


@pytest.mark.parametrize("size", [1, 100, 5000])
def test_a_chunked_photo_is_as_good_as_any(shared_server: Running, size: int) -> None:
    photo = gray(51) if size == 1 else png(height=400, width=600) + bytes(100_000)
    assert exchange(shared_server, CHUNKED, chunks(photo, size)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("padding", [b"X-Long: " + b"a" * MAX_HEAD + b"\r\n", b"a:\r\n" * MAX_LINES])
@pytest.mark.parametrize("at_once", [True, False])
def test_heads_are_limited_however_they_come(shared_server: Running, padding: bytes, at_once: bool) -> None:
    start = b"GET /v2 HTTP/1.1\r\nHost: blu\r\nConnection: close\r\n"
    data = [start + padding + b"\r\n"] if at_once else [start, padding[:3000], padding[3000:], b"\r\n"]
    answer = exchange(shared_server, *data)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""
    good = start + padding[: len(padding) // 2].rpartition(b"\r\n")[0] + b"\r\n\r\n" if padding[:1] == b"a" else start
    assert exchange(shared_server, good + b"\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_broken_body_beside_its_head_is_answered_once(launch: Start) -> None:
    server = launch()
    for path in (b"/v1/predict", b"/nothing"):  # one waits for the body, one answers without it
        answer = exchange(server, CHUNKED.replace(b"/v1/predict", path) + b"no length\r\n")
        assert answer.count(b"HTTP/1.1 ") == 1 and answer.startswith(b"HTTP/1.1 400 ")
    server.stop()
    assert not [line for line in server.lines if line["event"] == "text" or "traceback" in line]


def test_what_is_not_http_gets_a_problem(shared_server: Running) -> None:
    head, _, body = exchange(shared_server, b"hello\r\n\r\n").partition(b"\r\n\r\n")
    error = json.loads(body)
    assert head.startswith(b"HTTP/1.1 400 ") and error["error"]["code"] == "bad_request" and error["error"]["fix"]
    assert f"x-request-id: {error['request_id']}".encode() in head.lower()


def test_pipelined_requests_are_answered_in_their_order(shared_server: Running) -> None:
    first = b"GET /v2 HTTP/1.1\r\nHost: blu\r\n\r\n"
    ends = b"GET /v2/health/live HTTP/1.1\r\nHost: blu\r\nConnection: close\r\n\r\n"
    answer = exchange(
        shared_server, first * (3 * TURN) + CHUNKED.replace(b"close", b"keep-alive"), chunks(gray(51), 2) + ends
    )
    parts = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(parts) == 3 * TURN + 2
    assert [part.split(b"\r\n\r\n", 1)[1][:12] for part in (parts[0], parts[-2], parts[-1])] == [
        b'{"name":"blu', b'{"request_id', b'{"ready": tr',
    ]  # fmt: skip
