"""Limits that hold: places, time, bytes, connections, keys. Real sockets, a device that the test stops."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import PATIENCE, Running, Start, gray, metric, png, until

from blu_export.errors import UsageError
from blu_export.serve.errors import BadRequestError, UnauthorizedError, UnsupportedTypeError
from blu_export.serve.limits import ApiKeys, image_of
from blu_export.serve.settings import read_api_keys

KEY, OTHER_KEY = "0123456789abcdef0123", "another-key-that-is-long-enough"


@contextmanager
def connection(server: Running, data: bytes = b"", receive_buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as sock:
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(PATIENCE)
        sock.connect(("127.0.0.1", server.port))
        sock.sendall(data)
        yield sock


def rest(sock: socket.socket) -> bytes:
    """Everything until the server closes; the start of it where it resets."""
    found = b""
    try:
        while more := sock.recv(2**16):
            found += more
    except ConnectionResetError:
        pass
    return found


def head(length: int, path: str = "/v1/predict", more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: blu\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def test_a_full_server_says_429_and_when_to_come_again(launch: Start) -> None:
    server = launch(queue=2)
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        server.pause()
        waiting = [pool.submit(server.post, gray(51)) for _ in "12"]
        until(lambda: metric(client, "blu_photos_inside") == 2)
        refused = client.post("/v1/predict", content=gray(51))
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["code"] == "busy"
        for path in ("/v2/health/live", "/v2/health/ready", "/metrics", "/"):
            assert client.get(path).status_code == 200
        server.resume()
        assert [each.result().status_code for each in waiting] == [200, 200]
        assert client.post("/v1/predict", content=gray(51)).status_code == 200


def test_the_deadline_includes_the_queue_and_expired_work_never_runs(launch: Start) -> None:
    server = launch(timeout=3.0, max_batch=1)
    with server.client() as client, ThreadPoolExecutor(3) as pool:
        server.pause()
        waiting = [pool.submit(server.post, gray(51)) for _ in "123"]
        answers = [each.result() for each in waiting]
        assert [each.status_code for each in answers] == [504] * 3
        assert {each.json()["error"]["code"] for each in answers} == {"deadline"}
        server.wait_for("worker restarted")  # it kept the device for longer than a request may last
        assert client.post("/v1/predict", content=gray(51)).status_code == 200
        assert metric(client, "blu_batch_size_count") == 1


def test_a_body_that_does_not_come_is_408(launch: Start) -> None:
    server = launch(timeout=0.5)
    with connection(server, head(1000) + b"\xff\xd8\xff") as sock:
        assert rest(sock).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/predict HTTP/1.1\r\nX-Slow: "])
def test_a_head_that_does_not_come_ends_the_connection(launch: Start, sent: bytes) -> None:
    server = launch(head_timeout=0.5)
    with connection(server, sent) as sock:
        assert rest(sock) == b""


def test_a_head_that_is_too_long_is_refused(shared_server: Running) -> None:
    with connection(shared_server, b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000) as sock:
        assert rest(sock)[:12] in (b"HTTP/1.1 400", b"")


def masks_request(side: int) -> bytes:
    """Asks for the masks of a photo, 2 * side * side bytes."""
    body = png(height=side, width=side)
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(body) + 4}}
    masks = {"name": "masks", "parameters": {"binary_data": True}}
    form = json.dumps({"inputs": [tensor], "outputs": [masks]}).encode()
    request = head(
        len(form) + 4 + len(body), "/v2/models/fake/infer", f"Inference-Header-Content-Length: {len(form)}\r\n"
    )
    return request + form + len(body).to_bytes(4, "little") + body


def test_who_does_not_read_its_answer_is_cut_off(launch: Start) -> None:
    server = launch(send_timeout=0.5)
    with server.client() as client:
        before = metric(client, "process_open_fds")
        with connection(server, masks_request(3000), receive_buffer=2**14) as sock:  # more than sockets buffer
            assert sock.recv(12) == b"HTTP/1.1 200"
            until(lambda: metric(client, "process_open_fds") == before)
            assert len(rest(sock)) < 2 * 3000 * 3000


def test_who_reads_slowly_gets_its_whole_answer(launch: Start) -> None:
    server = launch(send_timeout=1.5)
    length = 2 * 1700 * 1700
    with server.client() as client, connection(server, masks_request(1700), receive_buffer=2**17) as sock:
        found = b""
        while len(found) < length and (more := sock.recv(2**12)):
            found += more
            assert client.get("/v2/health/live").status_code == 200  # takes its time: in all, more than the timeout
        assert len(found) > length


def test_unread_answers_are_bounded(launch: Start) -> None:
    size = 2 * 3000 * 3000
    server = launch(answer_memory=3 * size)
    request = masks_request(3000)
    with server.client() as client, ExitStack() as stack:
        sockets = [stack.enter_context(connection(server, request, receive_buffer=2**14)) for _ in range(12)]
        statuses = [sock.recv(12)[-3:] for sock in sockets]
        assert Counter(statuses) == {b"200": 2, b"429": 10}
        assert b"\r\nretry-after: 1\r\n" in sockets[statuses.index(b"429")].recv(2**12)
        assert client.post("/v1/predict", content=gray(51)).status_code == 200  # a small one is not counted
        for sock in sockets:
            sock.close()

        def whole() -> bool:
            with connection(server, request.replace(b"Host: blu", b"Host: blu\r\nConnection: close", 1)) as sock:
                return len(rest(sock)) > size

        until(whole)  # what the others did not read is given back


LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: blu\r\nConnection: close\r\n\r\n"


def test_a_connection_beyond_the_limit_takes_the_place_of_the_longest_idle(launch: Start) -> None:
    server = launch(max_connections=3)
    with connection(server) as oldest, connection(server) as second, connection(server) as third:
        with connection(server, LIVE) as fourth:
            assert rest(fourth).startswith(b"HTTP/1.1 200")
        assert rest(oldest) == b""
        third.sendall(LIVE)
        assert rest(third).startswith(b"HTTP/1.1 200")
        second.sendall(LIVE)
        assert rest(second).startswith(b"HTTP/1.1 200")


def test_where_all_are_at_work_a_connection_beyond_the_limit_is_closed(launch: Start) -> None:
    server = launch(max_connections=2)
    sends = head(1000, more="Expect: 100-continue\r\n")
    with connection(server, sends) as one, connection(server, sends) as two:
        for sock in (one, two):
            assert sock.recv(2**10).startswith(b"HTTP/1.1 100")
        with connection(server) as too_many:
            assert rest(too_many) == b""
        one.sendall(bytes(1000))
        assert one.recv(12) == b"HTTP/1.1 415"
        with connection(server, LIVE) as another:  # in the place of the first, which is idle now
            assert rest(another).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("grpc_port", [None, 0])
def test_connections_keep_within_the_open_files(launch: Start, grpc_port: int | None) -> None:
    files = 200
    server = launch(limit_files=files, grpc_port=grpc_port)
    told = next(line for line in server.lines if line["event"] == "fewer connections")
    assert told["open_files"] == files
    assert told["connections"] <= (files - 64) // (1 if grpc_port is None else 2)
    with ExitStack() as stack:
        for _ in range(2 * files):
            stack.enter_context(connection(server))
        with server.client() as client:
            assert client.get("/v2/health/live").status_code == 200
            assert metric(client, "process_open_fds") <= files
            assert client.post("/v1/predict", content=gray(51)).status_code == 200
    assert len([line for line in server.lines if line["event"] == "too many connections"]) < 60
    assert not any("accept" in line["event"] for line in server.lines)


def test_memory_for_uploads_is_shared_and_given_back(launch: Start) -> None:
    server = launch(upload_memory=100_000, max_upload=80_000)
    body = b"no photo" * 8000

    def status() -> int:
        return server.post(body).status_code

    assert status() == 415
    with connection(server, head(80_000) + bytes(60_000)):
        until(lambda: status() == 429)
    until(lambda: status() == 415)  # the client is gone, and its bytes with it


def test_keys_open_the_server(launch: Start) -> None:
    server = launch(api_keys=[KEY, OTHER_KEY])
    with server.client() as client:
        refused = client.post("/v1/predict", content=gray(51))
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.headers["x-request-id"] == refused.json()["request_id"]
        for wrong in ("Bearer", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer \u00e4".encode("latin-1")):
            assert client.post("/v1/predict", content=gray(51), headers={"authorization": wrong}).status_code == 401
        for right in ({"authorization": f"Bearer {KEY}"}, {"x-api-key": KEY}, {"x-api-key": OTHER_KEY}):
            assert client.post("/v1/predict", content=gray(51), headers=right).status_code == 200
        for path in ("/", "/docs", "/openapi.json", "/v2/health/live", "/v2/health/ready"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/v1/model", "/v2", "/v2/models/fake", "/nothing"):
            assert client.get(path).status_code == 401


def test_keys_open_grpc_too(launch: Start) -> None:
    grpc = pytest.importorskip("tritonclient.grpc", reason="needs the extra serve")
    server = launch(api_keys=[KEY], grpc_port=0)
    tensor = grpc.InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([gray(51)], dtype=object))
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_ready()
        with pytest.raises(Exception, match="UNAUTHENTICATED"):
            client.infer("fake", [tensor])
        found = client.infer("fake", [tensor], headers={"authorization": f"Bearer {KEY}"})
        assert found.as_numpy("class_ids").tolist() == [1, 2]


def test_without_keys_everything_is_open() -> None:
    ApiKeys(()).check(None, None)
    with pytest.raises(UnauthorizedError):
        ApiKeys((KEY,)).check(None, None)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "short\n", "with a blank inside, but long\n", "ä" * 20])
def test_key_files_that_hold_no_secret(text: str, tmp_path: object) -> None:
    path = tmp_path / "keys.txt"  # type: ignore[operator]
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError):
        read_api_keys(path)
    path.write_text(f"# mine\n\n  {KEY}\n", encoding="utf-8")
    assert read_api_keys(path) == (KEY,)
    path.write_text(f"{KEY}\n", encoding="utf-8-sig")  # as Windows' editors save it
    assert read_api_keys(path) == (KEY,)
    path.unlink()
    with pytest.raises(UsageError, match=r"keys\.txt"):
        read_api_keys(path)


@given(
    st.sampled_from(["multipart/form-data; boundary=x", "multipart/form-data; boundary", "image/png", "text/html", ""]),
    st.one_of(
        st.binary(max_size=200),
        st.lists(
            st.sampled_from(
                [
                    b"--x",
                    b"--x--",
                    b"\r\n",
                    b"\r\n\r\n",
                    b'Content-Disposition: form-data; name="a"; filename=b',
                    b"data",
                ]
            ),
            max_size=20,
        ).map(b"".join),
    ),
)
def test_any_body_is_a_photo_or_the_clients_fault(content_type: str, body: bytes) -> None:
    with suppress(BadRequestError, UnsupportedTypeError):
        assert image_of(content_type, body)


def test_the_first_file_of_a_form_counts() -> None:
    def part(disposition: str, content: bytes) -> bytes:
        return f"--x\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"

    body = (
        part('name="note"', b"text") + part('name="a"; filename="a"', b"first") + part('name="b"; filename="b"', b"2")
    )
    assert image_of('multipart/form-data; boundary="x"', body + b"--x--\r\n") == b"first"
