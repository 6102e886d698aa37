"""Attacks on ``blu serve``, each on a fresh server, while health, regular photos and memory are watched."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from benchmarks import hostile
from benchmarks.loadgen import MEGABYTE, PATIENCE, Reply, ServerProcess, exchange, request
from benchmarks.serve_target import Target, warm_server

HEALTH_PERIOD = 0.02
"""Seconds between an answer of ``/v2/health/live`` and the next question."""
PHOTO_PERIOD = 0.3
GRPC_PERIOD = 1.0
"""Seconds between photos over gRPC, which come beside the regular ones: together they must not be an overload."""
MEMORY_PERIOD = 0.1
AROUND = 1.0
"""Seconds that are watched before and after an attack."""
LEFT = 35.0
"""Seconds after which the memory is looked at of a server whose clients have left."""
SILENT_CALLS = 26
"""Calls of gRPC without a message, twice as many as the server has places for messages."""
OPEN_FILES, CONNECTIONS = 256, 400
LOG_SECONDS = 4.0
INFER = "/inference.GRPCInferenceService/ModelInfer"

T = TypeVar("T")


@dataclass
class Scene:
    """What an attack has to work with."""

    target: Target
    server: ServerProcess
    body: bytes
    quick: bool

    @property
    def grpc_port(self) -> int:
        """Of a server that was started with one."""
        return int(next(line for line in self.server.lines if line["event"] == "listening")["grpc_port"])


@dataclass
class Outcome:
    """What the attackers were told, and figures of this attack alone."""

    statuses: Sequence[int | str]
    max_s: float | None = None
    """Seconds until the slowest answer; None where there was none."""
    extra: dict[str, Any] = field(default_factory=dict)


def _no_body(target: Target) -> bytes:
    return b""


@dataclass(frozen=True)
class Attack:
    """What is done to a server, and what is looked at afterwards."""

    act: Callable[[Scene], Awaitable[Outcome]]
    body: Callable[[Target], bytes] = _no_body
    """Made before the server starts."""
    settings: dict[str, Any] = field(default_factory=dict)
    after: Callable[[ServerProcess], Awaitable[dict[str, Any]]] | None = None
    """Further figures, once no one sends anything."""


@dataclass
class Watch:
    """What others noticed of an attack."""

    health_s: float = 0.0
    """The longest wait for an answer."""
    health_failures: int = 0
    """Questions whose connection broke, or that got another answer than 200."""
    photos: list[Reply] = field(default_factory=list)
    peak: int = 0
    """The most bytes that all processes had, before the attack or during it.

    The size falls, too, when other programs of the machine begin to use the same libraries.
    """


async def attacks(target: Target, quick: bool) -> dict[str, Any]:
    """All of them, one after another."""
    return {name: await measure(target, attack, quick) for name, attack in ATTACKS.items()}


async def measure(target: Target, attack: Attack, quick: bool = False) -> dict[str, Any]:
    """One attack on a server of its own."""
    body = await asyncio.to_thread(attack.body, target)
    async with warm_server(target, **attack.settings) as warm:
        server = warm.server
        idle = server.total_memory()
        async with watching(server, target, Watch(peak=idle)) as watch:
            await asyncio.sleep(AROUND)
            outcome = await attack.act(Scene(target, server, body, quick))
            await asyncio.sleep(AROUND)
        after = await attack.after(server) if attack.after else {}
    return {
        "statuses": _counted(outcome.statuses),
        "max_s": None if outcome.max_s is None else round(outcome.max_s, 3),
        "health": {"max_s": round(watch.health_s, 3), "failures": watch.health_failures},
        "regular": {
            "statuses": _counted([reply.status for reply in watch.photos]),
            "max_s": round(max(reply.seconds for reply in watch.photos), 3),
            "wrong": target.wrong(watch.photos),
        },
        "idle_mb": round(idle / MEGABYTE),
        "peak_mb": round(watch.peak / MEGABYTE),
        **outcome.extra,
        **after,
    }


def _counted(statuses: Sequence[int | str]) -> dict[str, int]:
    return {status: count for status, count in sorted(Counter(map(str, statuses)).items())}


@asynccontextmanager
async def watching(server: ServerProcess, target: Target, watch: Watch) -> AsyncIterator[Watch]:
    """Ask for health, send photos, and look at the memory, until the block ends and all photos are answered."""
    over = threading.Event()

    async def photo(index: int) -> Reply:
        return await exchange(server.port, target.request(index))

    # In threads: they must not wait for the senders of the attack.
    health = asyncio.create_task(asyncio.to_thread(_ask_for_health, server.port, watch, over))
    memory = asyncio.create_task(asyncio.to_thread(sample_memory, server, watch, over))
    photos = asyncio.create_task(paced(PHOTO_PERIOD, over.is_set, photo))
    try:
        yield watch
    finally:
        over.set()
        watch.photos = await photos
        await asyncio.gather(health, memory)


async def paced(period: float, over: Callable[[], bool], send: Callable[[int], Awaitable[T]]) -> list[T]:
    """Call ``send`` with 0, 1, 2, … every ``period`` seconds, whether or not earlier ones have returned."""
    start = time.perf_counter()
    tasks: list[asyncio.Future[T]] = []
    while not over():
        tasks.append(asyncio.ensure_future(send(len(tasks))))
        await asyncio.sleep(max(0.0, start + period * len(tasks) - time.perf_counter()))
    return list(await asyncio.gather(*tasks))


def _ask_for_health(port: int, watch: Watch, over: threading.Event) -> None:
    """On one connection, which is opened again where the server has closed it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    since: float | None = None
    while not over.wait(HEALTH_PERIOD):
        since = time.perf_counter() if since is None else since
        try:
            connection.request("GET", "/v2/health/live")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            watch.health_failures += 1
            continue  # the wait goes on
        watch.health_failures += answer.status != 200
        watch.health_s, since = max(watch.health_s, time.perf_counter() - since), None
    if since is not None:
        watch.health_s = max(watch.health_s, time.perf_counter() - since)
    connection.close()


def sample_memory(server: ServerProcess, watch: Watch, over: threading.Event) -> None:
    """Note the most memory of a server and all that it has started, until told that it is over."""
    while not over.wait(MEMORY_PERIOD):
        watch.peak = max(watch.peak, server.total_memory())


async def post(scene: Scene, path: str = "/v1/predict", count: int = 2) -> Outcome:
    """The same body several times at once; MODEL in the path is the model's name."""
    data = request(scene.body, path.replace("MODEL", scene.target.name))
    replies = await asyncio.gather(*(exchange(scene.server.port, data) for _ in range(count)))
    return _of(replies)


def _of(replies: Sequence[Reply]) -> Outcome:
    return Outcome([reply.status for reply in replies], max(reply.seconds for reply in replies))


async def terminated(server: ServerProcess) -> dict[str, Any]:
    """How long the server takes to end."""
    start = time.perf_counter()
    code = await server.stop(signal.SIGTERM)
    return {"exit_s": round(time.perf_counter() - start, 3), "exit_code": code}


async def repeat(scene: Scene, connections: int = 2, seconds: float = 8.0) -> Outcome:
    """The body as bytes on the wire, on a new connection as soon as the last one was answered."""
    end = time.perf_counter() + (seconds / 3 if scene.quick else seconds)

    async def client() -> list[Reply]:
        replies = []
        while time.perf_counter() < end:
            replies.append(await exchange(scene.server.port, scene.body))
        return replies

    found = await asyncio.gather(*(client() for _ in range(connections)))
    return _of([reply for replies in found for reply in replies])


@asynccontextmanager
async def grpc_channel(port: int) -> AsyncIterator[Any]:
    """A connection of its own; gRPC would share one among all channels of a process."""
    import grpc

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        await asyncio.wait_for(channel.channel_ready(), PATIENCE)
        yield channel


async def grpc_status(call: Any) -> str:
    """The name of a call's code, ``open`` where it has none yet."""
    return str((await call.code()).name) if call.done() else "open"


def infer_message(target: Target, photo: bytes, output: str) -> bytes:
    """A ModelInferRequest, serialized."""
    from tritonclient.grpc import service_pb2 as pb

    message = pb.ModelInferRequest(model_name=target.name)
    message.inputs.add(name="image", datatype="BYTES", shape=[1])
    message.outputs.add(name=output)
    message.raw_input_contents.append(len(photo).to_bytes(4, "little") + photo)
    return bytes(message.SerializeToString())


async def silent_calls(scene: Scene) -> Outcome:
    """Calls on one connection that never send their message; photos on another one."""
    messages = [infer_message(scene.target, photo, "scores") for photo in scene.target.photos]
    ended: list[float] = []
    async with grpc_channel(scene.grpc_port) as silent, grpc_channel(scene.grpc_port) as regular:
        start = time.perf_counter()
        calls = [silent.stream_stream(INFER)() for _ in range(SILENT_CALLS)]
        for call in calls:
            call.add_done_callback(lambda _: ended.append(time.perf_counter() - start))
        infer = regular.unary_unary(INFER)

        async def photo(index: int) -> tuple[str, float]:
            sent = time.perf_counter()
            call = infer(messages[index % len(messages)], timeout=PATIENCE)
            name = (await call.code()).name  # waits for the end of the call
            return str(name), time.perf_counter() - sent

        end = start + (6.0 if scene.quick else 35.0)  # longer than the server's --timeout
        photos = await paced(GRPC_PERIOD, lambda: time.perf_counter() > end, photo)
        statuses = [await grpc_status(call) for call in calls]
        slowest = max(ended, default=None)
        for call in calls:
            call.cancel()
    over_grpc = {"statuses": _counted([status for status, _ in photos]), "max_s": round(max(s for _, s in photos), 3)}
    return Outcome(statuses, slowest, {"grpc": over_grpc})


async def unread_answers(scene: Scene) -> Outcome:
    """Calls whose answers fill the window of their connection and go no further, as no one reads them."""
    message = infer_message(scene.target, scene.body, "masks")
    async with contextlib.AsyncExitStack() as stack:
        calls = []
        for _ in range(5 if scene.quick else 20):
            channel = await stack.enter_async_context(grpc_channel(scene.grpc_port))
            # As a stream: the client takes from the connection what it is asked to read, which is nothing.
            calls.append(channel.stream_stream(INFER)())
            await calls[-1].write(message)
            await calls[-1].done_writing()
            await asyncio.sleep(0.3)
        await asyncio.sleep(4.0 if scene.quick else 12.0)
        statuses = [await grpc_status(call) for call in calls]
        for call in calls:
            call.cancel()
    return Outcome(["unread" if status == "open" else status for status in statuses])


async def memory_later(server: ServerProcess) -> dict[str, Any]:
    """What the server's process still has some time after its clients left."""
    await asyncio.sleep(LEFT)
    return {"server_later_mb": round(server.memory()["server"] / MEGABYTE)}


async def too_many_connections(scene: Scene) -> Outcome:
    """More connections than the server may open files, which say nothing."""
    start, logged = time.perf_counter(), scene.server.log_bytes
    async with contextlib.AsyncExitStack() as stack:
        readers = []
        for _ in range(CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", scene.server.port)
            stack.callback(writer.close)
            readers.append(reader)
        await asyncio.sleep(max(0.0, start + LOG_SECONDS - time.perf_counter()))
        logged = scene.server.log_bytes - logged
        statuses = ["closed" if reader.at_eof() or reader.exception() else "open" for reader in readers]
    return Outcome(statuses, extra={"log_kb": round(logged / 1000, 1)})


ATTACKS: dict[str, Attack] = {
    "0.3 MB of JSON: a long string among the pixels": Attack(
        partial(post, path="/v2/models/MODEL/infer", count=1), lambda _: hostile.json_with_string()
    ),
    "19.8 MB of JSON lists, twice at once": Attack(
        partial(post, path="/v2/models/MODEL/infer"), lambda _: hostile.json_lists()
    ),
    "progressive JPEG of 6,000 scans, 0.5 MB, twice": Attack(post, lambda _: hostile.jpeg_of_scans(), after=terminated),
    "JPEG of 4 million markers, 16 MB, twice": Attack(post, lambda _: hostile.jpeg_of_markers()),
    "PNG of a million chunks, 12 MB, twice": Attack(post, lambda _: hostile.png_of_chunks()),
    "BigTIFF of 900,000 tags, 18 MB, twice": Attack(post, lambda _: hostile.tiff_of_tags()),
    "PNG whose EXIF has 20,000 tags of 10 MB each, twice": Attack(post, lambda _: hostile.png_of_exif_tags()),
    "WebP of 49 megapixels, four at once": Attack(partial(post, count=4), lambda _: hostile.webp()),
    "26 silent `ModelInfer` on one gRPC connection": Attack(silent_calls, settings={"grpc_port": 0}),
    "chunks of one byte, two connections": Attack(repeat, lambda _: hostile.tiny_chunks()),
    "answers of 100 MB over gRPC that no one reads": Attack(
        unread_answers,
        lambda target: hostile.enlarged(target.photos[0]),
        settings={"grpc_port": 0},
        after=memory_later,
    ),
    "400 connections where 256 files may be open": Attack(too_many_connections, settings={"open_files": OPEN_FILES}),
}
