"""gRPC where clients do not keep to their part: no message, answers that nobody reads, too many calls."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fake_runner import write_model
from loopback import HERE, PATIENCE, Running, Start, grey, metric, png, until

from blu_export.serve.settings import ServeSettings

grpc = pytest.importorskip("grpc", reason="needs the extra serve")
pytest.importorskip("tritonclient.grpc", reason="needs the extra serve")

from tritonclient.grpc import service_pb2 as pb  # noqa: E402
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402

from blu_export.serve import rpc  # noqa: E402
from blu_export.serve.service import Service  # noqa: E402

INFER, READY = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ServerReady"
KEY = "0123456789abcdef0123"


@contextmanager
def channel_to(server: Running) -> Iterator[Any]:
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel


@contextmanager
def silent_calls(channel: Any, path: str, count: int) -> Iterator[list[Any]]:
    """Open calls that never send a message."""
    over = Event()

    def nothing() -> Iterator[bytes]:
        over.wait(PATIENCE)
        yield from ()

    try:
        yield [channel.stream_unary(path).future(nothing()) for _ in range(count)]
    finally:
        over.set()


def infer_request(photo: bytes, *outputs: str) -> Any:
    request = pb.ModelInferRequest(model_name="fake", raw_input_contents=[len(photo).to_bytes(4, "little") + photo])
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    for name in outputs:
        request.outputs.add(name=name)
    return request


def code(call: Any) -> str:
    return str(call.exception(PATIENCE).code().name if call.exception(PATIENCE) else "OK")


def test_calls_without_a_message_shut_nobody_out_and_end(launch: Start) -> None:
    server = launch(grpc_port=0, timeout=5.0)  # 25 of the largest messages fit into the memory for them
    with channel_to(server) as channel, channel_to(server) as other:
        calls = GRPCInferenceServiceStub(other)
        with silent_calls(channel, READY, 40) as asking, silent_calls(channel, INFER, 40) as sending:
            refused: list[Any] = []

            def some_are_refused() -> bool:
                refused[:] = [call for call in sending if call.done()]
                assert calls.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE).live
                assert calls.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE).ready
                return len(refused) >= 15

            until(some_are_refused)
            assert Counter(map(code, sending)) == {"RESOURCE_EXHAUSTED": 15, "DEADLINE_EXCEEDED": 25}
            assert Counter(map(code, asking)) == {"DEADLINE_EXCEEDED": 40}
        assert len(calls.ModelInfer(infer_request(grey(51), "scores")).outputs) == 1


def test_health_answers_beside_many_photos(launch: Start) -> None:
    server = launch(grpc_port=0)
    with server.client() as client, channel_to(server) as channel:
        calls = GRPCInferenceServiceStub(channel)
        server.pause()
        waiting = [calls.ModelInfer.future(infer_request(grey(51), "scores")) for _ in range(20)]
        until(lambda: metric(client, "blu_photos_inside") == 20)
        waiting += [calls.ModelInfer.future(infer_request(grey(51), "scores")) for _ in range(20)]
        until(lambda: metric(client, "blu_photos_inside") == 40)
        assert calls.ServerReady(pb.ServerReadyRequest(), timeout=PATIENCE).ready
        server.resume()
        assert Counter(map(code, waiting)) == {"OK": 40}


def test_the_key_comes_before_the_message(launch: Start) -> None:
    server = launch(grpc_port=0, api_keys=[KEY])
    with channel_to(server) as channel:
        with silent_calls(channel, INFER, 1) as calls:
            assert code(calls[0]) == "UNAUTHENTICATED"
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
            GRPCInferenceServiceStub(channel).ServerMetadata(pb.ServerMetadataRequest())


def test_connections_that_do_nothing_are_closed(launch: Start) -> None:
    server = launch(grpc_port=0, max_connections=3, head_timeout=0.5)
    with ExitStack() as stack:
        *silent, too_many = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.grpc_port), PATIENCE)) for _ in "1234"
        ]
        for sock in (too_many, *silent):
            while sock.recv(2**10):  # the server's own greeting comes first
                pass
    with channel_to(server) as channel:
        assert GRPCInferenceServiceStub(channel).ServerReady(pb.ServerReadyRequest(), wait_for_ready=True).ready


def test_messages_that_are_none_are_the_clients_fault(shared_server: Running) -> None:
    with channel_to(shared_server) as channel:
        for message, expected in ((b"\xff" * 9, "INVALID_ARGUMENT"), (bytes(400_000), "RESOURCE_EXHAUSTED")):
            assert code(channel.unary_unary(INFER).future(message)) == expected
        assert code(channel.stream_unary(INFER).future(iter(()))) == "INVALID_ARGUMENT"
        for path in ("/inference.GRPCInferenceService/TraceSetting", INFER + "s", "/other.Service/ModelInfer"):
            assert code(channel.unary_unary(path).future(b"")) == "UNIMPLEMENTED"


@contextmanager
def unread_call(port: int, message: bytes) -> Iterator[socket.socket]:
    """A call in frames of HTTP/2 (RFC 9113), whose window is never opened: a client that does not read."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload

    fields = {":method": "POST", ":scheme": "http", ":path": INFER, ":authority": "blu"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    head = b"".join(
        b"\0" + bytes([len(key)]) + key.encode() + bytes([len(value)]) + value.encode() for key, value in fields.items()
    )
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"") + frame(1, 4, 1, head))
        sock.sendall(frame(0, 1, 1, struct.pack(">BI", 0, len(message)) + message))
        yield sock


def test_answers_that_nobody_reads_are_bounded(launch: Start) -> None:
    side = 1000
    size = 2 * side * side
    server = launch(grpc_port=0, answer_memory=3 * size)
    request = infer_request(png(height=side, width=side), "masks")
    with server.client() as client, channel_to(server) as channel, ExitStack() as stack:
        call = GRPCInferenceServiceStub(channel).ModelInfer

        def answered() -> float:
            return metric(client, "blu_batch_size_sum")

        for count in (1, 2):
            stack.enter_context(unread_call(server.grpc_port, request.SerializeToString()))
            until(lambda count=count: answered() == count)  # type: ignore[misc]
        until(lambda: code(call.future(request)) == "RESOURCE_EXHAUSTED")
        assert code(call.future(infer_request(grey(51), "scores"))) == "OK"  # a small one is not counted
        stack.close()
        until(lambda: code(call.future(request)) == "OK")
    assert not any(line["event"] == "call failed" for line in server.lines)


def test_an_answer_that_is_never_read_goes_with_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(rpc, "MAX_AGE", 1)
    monkeypatch.setattr(rpc, "ANSWER_GRACE", 0)
    model = write_model(tmp_path / "fake.onnx")
    request = infer_request(png(height=1000, width=1000), "masks").SerializeToString()

    async def main() -> None:
        settings = ServeSettings(model, loader="fake_runner:load", grpc_port=0, timeout=2.0)
        async with Service(settings) as service, asyncio.timeout(PATIENCE):
            server, port = await rpc.start(service)
            with unread_call(port, request):
                while not service.answers.used:
                    await asyncio.sleep(0)
                while service.answers.used:
                    await asyncio.sleep(0)
            await server.stop(0)

    asyncio.run(main())
