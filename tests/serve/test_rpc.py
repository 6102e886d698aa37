"""gRPC where clients do not keep to their part: no message, answers that no one reads, too many calls."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fake_runner import write_model
from loopback import HERE, PATIENCE, Running, Start, gray, metric, png, until

from blu_export.serve.settings import ServeSettings

grpc = pytest.importorskip("grpc", reason="needs the extra serve")
pytest.importorskip("tritonclient.grpc", reason="needs the extra serve")

from tritonclient.grpc import service_pb2 as pb  # noqa: E402
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub  # noqa: E402

from blu_export.serve import rpc  # noqa: E402
from blu_export.serve.errors import BusyError  # noqa: E402
from blu_export.serve.peers import Calls, Places, cut_off  # noqa: E402
from blu_export.serve.service import Service  # noqa: E402

INFER, READY = "/inference.GRPCInferenceService/ModelInfer", "/inference.GRPCInferenceService/ServerReady"
KEY = "0123456789abcdef0123"


@contextmanager
def channel_to(server: Running) -> Iterator[Any]:
    """A connection of its own; gRPC would share one among all channels of a process."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", options) as channel:
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


def test_calls_without_a_message_end_and_block_no_other_client(launch: Start) -> None:
    server = launch(grpc_port=0, timeout=3.0, message_timeout=1.0)
    with channel_to(server) as channel, channel_to(server) as other:
        calls = GRPCInferenceServiceStub(other)
        with silent_calls(channel, READY, 40) as asking, silent_calls(channel, INFER, 40) as sending:
            while not all(call.done() for call in sending):
                assert calls.ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE).live
                assert len(calls.ModelInfer(infer_request(gray(51), "scores"), timeout=PATIENCE).outputs) == 1
            assert Counter(map(code, sending)) == {"DEADLINE_EXCEEDED": 40}
            assert Counter(map(code, asking)) == {"DEADLINE_EXCEEDED": 40}


def test_places_are_shared_among_connections_and_peers() -> None:
    async def main() -> list[str]:
        places, order = Places(4), []  # 1 for a connection, 3 for a peer
        over = asyncio.Event()

        async def call(name: str, connection: str) -> None:
            async with places.hold(connection):
                order.append(name)
                await over.wait()

        async with asyncio.timeout(PATIENCE):
            calls = {
                name: asyncio.create_task(call(name, connection))
                for name, connection in {
                    "a1": "ipv4:a:1", "a1 again": "ipv4:a:1", "a2": "ipv4:a:2", "a3": "ipv4:a:3", "a4": "ipv4:a:4",
                    "b1": "ipv4:b:1", "c1": "ipv4:c:1", "c2": "ipv4:c:2",
                }.items()
            }  # fmt: skip
            await asyncio.sleep(0)
            assert order == ["a1", "a2", "a3", "b1"]
            for gone in ("c1", "b1"):  # c1 still waits; b1's place is free
                calls[gone].cancel()
                await asyncio.gather(calls[gone], return_exceptions=True)
            await asyncio.sleep(0)
            assert order[4:] == ["c2"]
            over.set()
            await asyncio.gather(*calls.values(), return_exceptions=True)
            assert order[5:] == ["a1 again", "a4"]
            async with places.hold("ipv4:a:1"), places.hold("ipv4:a:2"), places.hold("ipv4:a:3"):
                return order

    assert len(asyncio.run(main())) == 7


def test_a_peer_cannot_have_all_calls() -> None:
    calls = Calls(4)
    with calls.hold("ipv4:a:1"), calls.hold("ipv4:a:1"), calls.hold("ipv4:a:2"):
        with pytest.raises(BusyError), calls.hold("ipv4:a:3"):
            pass
        with calls.hold("ipv4:b:1"):
            pass
    with calls.hold("ipv4:a:3"):
        pass


@pytest.mark.parametrize("listen", ["127.0.0.1", "::1", "::"])
def test_one_connection_is_cut_off(listen: str) -> None:
    family = socket.AF_INET6 if ":" in listen else socket.AF_INET
    with socket.socket(family) as listener, ExitStack() as stack:
        if listen == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind((listen, 0))
        except OSError as error:
            pytest.skip(f"no IPv6 here: {error}")
        listener.listen()
        target = {"127.0.0.1": "127.0.0.1", "::1": "::1", "::": "127.0.0.1"}[listen]
        clients, served = [], []
        for _ in "12":
            clients.append(stack.enter_context(socket.create_connection((target, listener.getsockname()[1]), PATIENCE)))
            served.append(stack.enter_context(listener.accept()[0]))
        host, port = clients[0].getsockname()[:2]
        name = {"127.0.0.1": "ipv4:127.0.0.1", "::1": "ipv6:%5B::1%5D", "::": "ipv6:[::ffff:127.0.0.1]"}[listen]
        assert host == target and cut_off(f"{name}:{port}")
        assert clients[0].recv(1) == b""
        served[1].sendall(b"x")
        assert clients[1].recv(1) == b"x"
    assert not cut_off(f"{name}:{port}")


def test_health_answers_beside_many_photos(launch: Start) -> None:
    server = launch(grpc_port=0)
    with server.client() as client, channel_to(server) as channel:
        calls = GRPCInferenceServiceStub(channel)
        server.pause()
        waiting = [calls.ModelInfer.future(infer_request(gray(51), "scores")) for _ in range(20)]
        until(lambda: metric(client, "blu_photos_inside") == 20)
        waiting += [calls.ModelInfer.future(infer_request(gray(51), "scores")) for _ in range(20)]
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


def test_unread_answers_are_bounded(launch: Start) -> None:
    side = 1000
    size = 2 * side * side
    server = launch(grpc_port=0, answer_memory=5 * size)
    request = infer_request(png(height=side, width=side), "masks")
    with server.client() as client, channel_to(server) as channel, ExitStack() as stack:
        call = GRPCInferenceServiceStub(channel).ModelInfer

        def answered() -> float:
            return metric(client, "blu_batch_size_sum")

        for count in (1, 2):
            stack.enter_context(unread_call(server.grpc_port, request.SerializeToString()))
            until(lambda count=count: answered() == count)  # type: ignore[misc]
        until(lambda: code(call.future(request)) == "RESOURCE_EXHAUSTED")
        assert code(call.future(infer_request(gray(51), "scores"))) == "OK"  # a small one is not counted
        stack.close()
        until(lambda: code(call.future(request)) == "OK")
    assert not any(line["event"] == "call failed" for line in server.lines)


def test_an_answer_that_is_never_read_ends_with_its_connection_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
    model = write_model(tmp_path / "fake.onnx")
    request = infer_request(png(height=1000, width=1000), "masks").SerializeToString()

    async def main() -> None:
        settings = ServeSettings(
            model, loader="fake_runner:load", grpc_port=0, send_timeout=0.5, answer_memory=5_000_000
        )
        async with Service(settings) as service, asyncio.timeout(PATIENCE):
            server, port = await rpc.start(service)
            with unread_call(port, request) as first:
                while not service.answers.used:
                    await asyncio.sleep(0)
                with unread_call(port, request) as second:  # there is no memory for its answer: 429
                    await asyncio.to_thread(read_all, second)
                await asyncio.to_thread(read_all, first)
            assert not service.answers.used
            await server.stop(0)

    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kept = [each for each in gc.garbage if type(each).__name__ in ("_ServicerContext", "RPCState", "AbortError")]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not kept  # what is in a cycle would keep its answer until the collector comes by


def read_all(sock: socket.socket) -> None:
    """Until the server closes, or sends no more."""
    sock.settimeout(2)
    with suppress(OSError):
        while sock.recv(2**16):
            pass


@pytest.mark.parametrize("method", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_messages_are_not_unpacked(shared_server: Running, method: Any) -> None:
    with channel_to(shared_server) as channel:
        assert code(channel.unary_unary(INFER).future(bytes(10_000_000), compression=method)) == "UNIMPLEMENTED"


def test_answers_are_what_the_protocols_own_serializer_reads(shared_server: Running) -> None:
    with channel_to(shared_server) as channel:
        found = GRPCInferenceServiceStub(channel).ModelInfer(infer_request(gray(51)), timeout=PATIENCE)
    sizes = {each.name: len(raw) for each, raw in zip(found.outputs, found.raw_output_contents, strict=True)}
    assert {name: sizes[name] for name in ("rois", "class_ids", "scores", "masks")} == {
        "rois": 2 * 4 * 4,
        "class_ids": 2 * 4,
        "scores": 2 * 4,
        "masks": 2 * 48 * 64,
    }
    assert json.loads(found.raw_output_contents[list(sizes).index("masks_rle")][4:].split(b"}")[0] + b"}")["size"]
