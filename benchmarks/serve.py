"""``blu serve`` under load, overload, faults and abuse, on loopback; one command, results as JSON and Markdown.

    python -m benchmarks serve [--model garments.onnx] [--quick] [--only overload,kill]
    python -m benchmarks serve --docs     # write the newest table into docs/serve.md

Every answer is compared with what the same photo gets from a quiet server. Results go to
benchmarks/results/serve.json; ``--only`` replaces these scenarios in it. The load generator runs on the
machine that it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loadgen import (
    LOST,
    REFUSED,
    Reply,
    ServerProcess,
    closed_loop,
    exchange,
    open_loop,
    percentile,
    request,
    summary,
    until,
)
from benchmarks.malformed import KINDS
from benchmarks.malformed import bombs as packed_bombs
from benchmarks.overhead import overhead

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "serve.md"
MARK, MARK_END = "<!-- results: benchmarks/serve.py --docs -->", "<!-- end of results -->"
MEGABYTE = 2**20
SCORE_TOLERANCE = 0.01
"""Batches of different sizes round differently."""

Start = Callable[..., Awaitable[ServerProcess]]


@dataclass
class Target:
    """What is served, the photos that are sent, and the detections that they must get."""

    start: Start
    """``start(**settings)`` starts a server."""
    photos: Sequence[bytes]
    name: str
    """Of the model."""
    expected: Sequence[Any] = ()
    rate: float = 0.0
    """Photos per second that one server can do."""
    unloaded: float = 0.0
    """Seconds that a photo takes in a quiet server."""

    def request(self, index: int) -> bytes:
        """The ``index``-th request."""
        return request(self.photos[index % len(self.photos)], "/v1/predict?masks=none")

    async def learn(self) -> None:
        """Ask a quiet server for the right answers and its pace."""
        server = await self.start()
        try:
            replies = [await exchange(server.port, self.request(index)) for index in range(len(self.photos))]
            self.expected = [reply.json()["detections"] for reply in replies]
            self.unloaded = float(np.median([reply.seconds for reply in replies]))
            self.rate = await pace(server, self, max(2.0, 8 * self.unloaded))
        finally:
            await server.stop(signal.SIGKILL)

    def wrong(self, replies: Sequence[Reply]) -> int:
        """How many of the answers (in the order of their requests) are not the right ones."""
        return sum(
            not same(reply.json()["detections"], self.expected[index % len(self.photos)])
            for index, reply in enumerate(replies)
            if reply.status == 200
        )


def same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether two lists of detections are equal but for rounding."""
    return len(found) == len(expected) and all(
        one["class_id"] == other["class_id"]
        and abs(one["score"] - other["score"]) < SCORE_TOLERANCE
        and all(abs(a - b) <= 2 for a, b in zip(one["box"], other["box"], strict=True))
        for one, other in zip(found, expected, strict=True)
    )


async def pace(server: ServerProcess, target: Target, seconds: float, clients: int = 8) -> float:
    """Photos per second with ``clients`` impatient clients."""
    start = time.perf_counter()
    replies = await closed_loop(server.port, clients, seconds, target.request)
    return sum(reply.status == 200 for reply in replies) / (time.perf_counter() - start)


async def ready(server: ServerProcess) -> bool:
    """Whether the server says that it takes work."""
    return (await exchange(server.port, request(b"", "/v2/health/ready", method="GET"))).status == 200


async def saturation(target: Target, seconds: float, max_batches: Sequence[int] = (1, 4)) -> dict[str, Any]:
    """Throughput by batch limit."""
    found: dict[str, Any] = {}
    for max_batch in max_batches:
        server = await target.start(max_batch=max_batch)
        try:
            found[f"max_batch {max_batch}"] = {"photos_per_s": round(await pace(server, target, seconds), 3)}
        finally:
            await server.stop(signal.SIGKILL)
    return found


async def steady(target: Target, seconds: float, share: float = 0.6) -> dict[str, Any]:
    """Latency of an open loop at a share of what the server can do."""
    server = await target.start()
    try:
        replies = await open_loop(server.port, share * target.rate, seconds, target.request)
    finally:
        await server.stop(signal.SIGKILL)
    return summary(replies) | {"rate": round(share * target.rate, 3), "wrong": target.wrong(replies)}


async def overload(target: Target, seconds: float, times: float = 3.0) -> dict[str, Any]:
    """Several times what the server can do, then the time until it is itself again; health answers throughout."""
    server = await target.start()
    try:
        probes: list[Reply] = []

        async def probe() -> None:
            while True:
                probes.append(await exchange(server.port, request(b"", "/v2/health/ready", method="GET")))
                await asyncio.sleep(0.2)

        probing = asyncio.create_task(probe())
        sending = asyncio.create_task(open_loop(server.port, times * target.rate, seconds, target.request))
        await asyncio.sleep(seconds)
        end = time.perf_counter()
        # Itself again: a photo takes no longer than three times what it takes in a quiet server.
        while (reply := await exchange(server.port, target.request(0))).status != 200 or (
            reply.seconds > 3 * target.unloaded
        ):
            if time.perf_counter() - end > 60:
                break
        recovery = time.perf_counter() - end
        replies = await sending
        probing.cancel()
    finally:
        await server.stop(signal.SIGKILL)
    accepted = sum(reply.status == 200 for reply in replies)
    return summary(replies) | {
        "rate": round(times * target.rate, 3),
        "photos_per_s": round(accepted / seconds, 3),
        "wrong": target.wrong(replies),
        "retry_after": all("retry-after" in reply.headers for reply in replies if reply.status == 429),
        "recovery_s": round(recovery, 3),
        "health": {str(status) for status in {probe.status for probe in probes}} == {"200"},
        "health_p99_s": percentile(sorted(probe.seconds for probe in probes), 99),
    }


async def soak(target: Target, seconds: float) -> dict[str, Any]:
    """Memory after each fifth of the time at 80 % load; the first fifth is warm-up, growth is what the others add."""
    server = await target.start()
    fifths: list[list[Reply]] = []
    memory: list[dict[str, int]] = []
    try:
        for _ in range(5):
            fifths.append(await open_loop(server.port, 0.8 * target.rate, seconds / 5, target.request))
            memory.append(server.memory())
    finally:
        await server.stop(signal.SIGKILL)
    return summary(list(itertools.chain(*fifths))) | {
        "wrong": sum(map(target.wrong, fifths)),
        "memory_mb": {name: [round(each[name] / MEGABYTE, 1) for each in memory] for name in memory[0]},
        "growth": {name: round(memory[-1][name] / memory[0][name] - 1, 4) for name in memory[0]},
    }


async def kill(target: Target, seconds: float, kills: int = 3) -> dict[str, Any]:
    """SIGKILL to the worker, several times, under load."""
    server = await target.start()
    try:
        sending = asyncio.create_task(open_loop(server.port, 0.6 * target.rate, seconds, target.request))
        for count in range(1, kills + 1):
            await asyncio.sleep(seconds / (kills + 1) / 2)
            os.kill(server.worker, signal.SIGKILL)
            await server.wait_for("worker restarted", count)
        replies = await sending
    finally:
        await server.stop(signal.SIGKILL)
    return summary(replies) | {"wrong": target.wrong(replies), "kills": kills}


async def hang(target: Target, timeout: float) -> dict[str, Any]:
    """SIGSTOP to the worker: the photo on it runs into its deadline, the next ones are answered."""
    server = await target.start(timeout=timeout)
    try:
        os.kill(server.worker, signal.SIGSTOP)
        stuck = await exchange(server.port, target.request(0))
        start = time.perf_counter()
        await server.wait_for("worker restarted")
        restarted = time.perf_counter() - start
        after = await exchange(server.port, target.request(1))
    finally:
        await server.stop(signal.SIGKILL)
    right = after.status == 200 and same(after.json()["detections"], target.expected[1 % len(target.photos)])
    return {
        "stuck": {"status": stuck.status, "seconds": round(stuck.seconds, 3)},
        "ready_again_s": round(restarted, 3),
        "after": {"status": after.status, "right": right},
    }


async def terminate(target: Target, seconds: float) -> dict[str, Any]:
    """SIGTERM under load: what was sent before the socket closed is answered, the exit code is 0."""
    server = await target.start(notice=seconds / 4)
    sending = asyncio.create_task(open_loop(server.port, 0.6 * target.rate, seconds, target.request))
    await asyncio.sleep(seconds / 2)
    server.process.send_signal(signal.SIGTERM)
    await server.wait_for("stopping")
    turned = not await ready(server)
    start = time.perf_counter()
    code = await server.stop(0)
    replies = await sending
    answered = [reply for reply in replies if reply.status not in (REFUSED, 503)]
    return summary(replies) | {
        "ready_said_503_while_listening": turned,
        "exit_code": code,
        "exit_s": round(time.perf_counter() - start, 3),
        "lost": sum(reply.status == LOST for reply in answered),
        "wrong": target.wrong(replies),
    }


async def reload(target: Target, seconds: float, times: int = 3) -> dict[str, Any]:
    """SIGHUP under load, several times: the model is loaded again and swapped."""
    server = await target.start()
    try:
        sending = asyncio.create_task(open_loop(server.port, 0.5 * target.rate, seconds, target.request))
        for count in range(times):
            await asyncio.sleep(seconds / (times + 1) / 2)
            server.process.send_signal(signal.SIGHUP)
            await server.wait_for("model ready", count + 2)
        replies = await sending
    finally:
        await server.stop(signal.SIGKILL)
    return summary(replies) | {"wrong": target.wrong(replies), "reloads": times}


async def abuse(target: Target, count: int) -> dict[str, Any]:
    """Malformed requests of all kinds, good photos among them: 4xx for these, right answers for those."""
    server = await target.start()
    rng = random.Random(0)
    kinds = list(KINDS)
    statuses: dict[str, set[int]] = {kind: set() for kind in kinds}
    room = asyncio.Semaphore(8)

    async def one(index: int) -> Reply:
        kind = kinds[index % len(kinds)]
        data = KINDS[kind](rng).replace(b"/v2/models/MODEL/", f"/v2/models/{target.name}/".encode(), 1)
        async with room:
            reply = await exchange(server.port, data)
        statuses[kind].add(reply.status)
        return reply

    async def good() -> list[Reply]:
        found: list[Reply] = []
        while not attacking.done():
            found.append(await exchange(server.port, target.request(len(found))))
        return found

    try:
        await exchange(server.port, target.request(0))
        before = server.memory()["server"]
        attacking = asyncio.gather(*(one(index) for index in range(count)))
        fine = await good()
        replies = await attacking
        growth = server.memory()["server"] - before
    finally:
        await server.stop(signal.SIGKILL)
    return {
        "requests": len(replies),
        "kinds": len(kinds),
        "by_status": {str(s): sum(reply.status == s for reply in replies) for s in sorted({r.status for r in replies})},
        "not_4xx": sorted(kind for kind, found in statuses.items() if any(not 400 <= s < 500 for s in found)),
        "good_photos": summary(fine) | {"wrong": target.wrong(fine)},
        "growth_mb": round(growth / MEGABYTE, 1),
    }


async def bombs(target: Target, count: int = 8) -> dict[str, Any]:
    """Small files that are huge photos: refused on their header, before any pixel is decoded."""
    server = await target.start()
    files = packed_bombs()
    try:
        await exchange(server.port, target.request(0))
        before = server.memory()["server"]
        replies = await asyncio.gather(*(exchange(server.port, request(each)) for each in [*files.values()] * count))
        growth = server.memory()["server"] - before
    finally:
        await server.stop(signal.SIGKILL)
    return {
        "files": list(files),
        "requests": len(replies),
        "statuses": sorted({reply.status for reply in replies}),
        "growth_mb": round(growth / MEGABYTE, 1),
    }


async def slow_loris(target: Target, connections: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Connections that say nothing, half a head, or half a body; meanwhile photos are answered as ever."""
    server = await target.start(**settings)
    openings = (
        b"",
        b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nX-Slow: ",
        b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nContent-Length: 100000\r\n\r\n\xff\xd8\xff",
    )
    closed = 0

    async def crawl(index: int) -> None:
        nonlocal closed
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        with contextlib.suppress(ConnectionError, TimeoutError):
            writer.write(openings[index % len(openings)])
            async with asyncio.timeout(60):
                while not reader.at_eof():
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(1):
                            await reader.read(1000)
                            continue
                    writer.write(b"x" if index % len(openings) else b"")
        closed += 1
        writer.close()

    try:
        await exchange(server.port, target.request(0))
        before = server.memory()["server"]
        crawling = [asyncio.create_task(crawl(index)) for index in range(connections)]
        replies = await open_loop(server.port, 0.5 * target.rate, seconds, target.request)
        growth = server.memory()["server"] - before
        gone = await until(lambda: _true(closed == connections), 60)
        for task in crawling:
            task.cancel()
    finally:
        await server.stop(signal.SIGKILL)
    return summary(replies) | {
        "connections": connections,
        "wrong": target.wrong(replies),
        "growth_mb": round(growth / MEGABYTE, 1),
        "all_closed": gone is not None,
    }


async def _true(value: bool) -> bool:
    return value


def direct(model: Path, photos: Sequence[bytes], seconds: float, batches: Sequence[int] = (1, 4)) -> dict[str, Any]:
    """Photos per second of the runner alone, called in a loop on canvases that are ready."""
    from blu_export.image import decode, mold
    from blu_export.runtime import load_runner

    found: dict[str, Any] = {}
    with load_runner(model) as runner:
        molded = [mold(decode(photo), runner.spec) for photo in photos]
        for batch in batches:
            chosen = [molded[index % len(molded)] for index in range(batch)]
            canvas, window = np.stack([m.canvas for m in chosen]), np.stack([m.window for m in chosen])
            runner.run(canvas, window)
            runs, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                runner.run(canvas, window)
                runs += 1
            found[f"batch {batch}"] = {"photos_per_s": round(runs * batch / (time.perf_counter() - start), 3)}
    return found


async def transfer(model: Path, photos: Sequence[bytes], runs: int = 20) -> dict[str, Any]:
    """What the worker process costs: a batch's round trip less the time of the network in it."""
    from blu_export.image import decode, mold
    from blu_export.serve.settings import ServeSettings
    from blu_export.serve.worker_process import WorkerProcess

    device = await WorkerProcess.start(ServeSettings(model))
    try:
        molded = [mold(decode(photo), device.info.spec) for photo in photos[:1] * 4]
        found: dict[str, Any] = {}
        for batch in (1, 4):
            costs = []
            for _ in range(runs):
                start = time.perf_counter()
                raw = await device.run([m.canvas for m in molded[:batch]], [m.window for m in molded[:batch]], 600)
                costs.append(time.perf_counter() - start - raw.seconds)
            found[f"batch {batch}"] = {"median_ms": round(1000 * float(np.median(costs)), 3)}
        return found
    finally:
        await device.close()


async def decoding(model: Path, photos: Sequence[bytes], runs: int = 100) -> dict[str, Any]:
    """What a decoder process costs: a photo's round trip less the time of its decoding."""
    from blu_export.serve.decoder_process import Upload
    from blu_export.serve.decoding import Decoders
    from blu_export.serve.metrics import Metrics
    from blu_export.serve.settings import ServeSettings
    from blu_export.serve.worker_process import WorkerProcess

    device = await WorkerProcess.start(ServeSettings(model))
    await device.close()
    decoders = Decoders(ServeSettings(model), Metrics())
    try:
        await decoders.start()
        costs = []
        for _ in range(runs):
            start = time.perf_counter()
            found = await decoders.decode(Upload(photos[0], "image", {"content_type": "image/jpeg"}), device.info)
            costs.append(time.perf_counter() - start - found.seconds)
        return {"median_ms": round(1000 * float(np.median(costs)), 3), "least_ms": round(1000 * min(costs), 3)}
    finally:
        await decoders.close()


def demo_photos(count: int = 6) -> list[bytes]:
    """Variations of the demo photo that get different detections: crops and mirror images."""
    from PIL import Image, ImageOps

    from blu_export.embedded import DEMO_PHOTO, embedded

    found = []
    with Image.open(embedded(DEMO_PHOTO)) as opened:
        photo = opened.convert("RGB")
    width, height = photo.size
    for index in range(count):
        cut = index * width // 20
        variant = photo.crop((cut, 0, width, height - cut))
        buffer = io.BytesIO()
        (ImageOps.mirror(variant) if index % 2 else variant).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def blu_target(model: Path) -> Target:
    """``blu serve MODEL`` as a user starts it."""
    blu = shutil.which("blu", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    assert blu is not None, "blu is not installed"

    async def start(**settings: Any) -> ServerProcess:
        options = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
        return await ServerProcess.start([blu, "serve", model, "--port", "0", *options])

    return Target(start, demo_photos(), model.stem)


Scenario = Callable[[], Awaitable[dict[str, Any]]]


def scenarios(target: Target, model: Path, quick: bool) -> dict[str, Scenario]:
    """Everything that is measured, by name, in order."""
    short, long = (10.0, 10.0) if quick else (30.0, 60.0)

    async def runner_alone() -> dict[str, Any]:
        return await asyncio.to_thread(direct, model, target.photos, short)

    return {
        "direct": runner_alone,
        "overhead": lambda: overhead(target, model, 20 if quick else 100, short),
        "transfer": lambda: transfer(model, target.photos, 5 if quick else 20),
        "decoding": lambda: decoding(model, target.photos, 20 if quick else 100),
        "saturation": lambda: saturation(target, short),
        "steady": lambda: steady(target, long),
        "overload": lambda: overload(target, long),
        "soak": lambda: soak(target, 30.0 if quick else 600.0),
        "kill": lambda: kill(target, short),
        "hang": lambda: hang(target, 10.0),
        "terminate": lambda: terminate(target, short),
        "reload": lambda: reload(target, short),
        "abuse": lambda: abuse(target, 120 if quick else 1000),
        "bombs": lambda: bombs(target),
        "slow_loris": lambda: slow_loris(target, 300, short),
    }


async def run(model: Path, only: Sequence[str], quick: bool) -> dict[str, Any]:
    """Measure; the result as JSON values."""
    from blu_export.benchmark.machine import describe
    from blu_export.files import sha256_of

    target = blu_target(model)
    say("learning the right answers")
    await target.learn()
    found: dict[str, Any] = {}
    for name, scenario in scenarios(target, model, quick).items():
        if only and name not in only:
            continue
        say(name)
        found[name] = await scenario()
        say(f"  {json.dumps(found[name])}")
    return {
        "model": model.name,
        "sha256": sha256_of(model),
        "machine": describe(),
        "quick": quick,
        "unloaded_s": round(target.unloaded, 4),
        "photos_per_s": round(target.rate, 3),
        "scenarios": found,
    }


def merged(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """``new`` with the other scenarios of an earlier run of the same model on the same machine."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    if any(old.get(key) != new[key] for key in ("sha256", "machine", "quick")):
        return new
    return new | {"scenarios": old["scenarios"] | new["scenarios"]}


def markdown(result: dict[str, Any]) -> str:
    """The results as a table."""
    machine = result["machine"]
    length = "Short forms. " if result["quick"] else ""
    lines = [
        f"{length}Model `{result['model']}` (sha256 {result['sha256'][:12]}…) on {machine['processor']}, "
        f"{machine['cores']} cores, the load generator on the same machine. In a quiet server a photo takes "
        f"{result['unloaded_s']:.3f} s; with 8 clients in a closed loop it does {result['photos_per_s']:.2f} photos/s.",
        "",
        "| scenario | result |",
        "|---|---|",
    ]
    for name, values in result["scenarios"].items():
        cells = [f"{key.replace('_', ' ')} {_cell(value)}" for key, value in values.items()]
        lines.append(f"| {name.replace('_', ' ')} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return "yes" if value is True else "no" if value is False else str(value)


def update_docs(result: dict[str, Any], docs: Path = DOCS) -> None:
    """Put the table between the marks of the docs."""
    from blu_export.files import atomic_write

    text = docs.read_text()
    before, mark, rest = text.partition(MARK)
    _, end, after = rest.partition(MARK_END)
    if not (mark and end):
        raise SystemExit(f"{docs} has no marks '{MARK}' and '{MARK_END}'")
    with atomic_write(docs) as temporary:
        temporary.write_text(f"{before}{mark}\n{markdown(result)}{end}{after}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    from blu_export.embedded import embedded
    from blu_export.files import atomic_write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model file; default: the embedded model")
    parser.add_argument("--quick", action="store_true", help="short forms, about five minutes")
    parser.add_argument("--only", default="", help="names of scenarios, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json", help="where the results go")
    parser.add_argument("--docs", action="store_true", help=f"only write the table into {DOCS.name}")
    arguments = parser.parse_args()
    if arguments.docs:
        update_docs(json.loads(arguments.out.read_text()))
        return
    only = [name for name in arguments.only.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        # A copy: no one may change the file meanwhile.
        source = arguments.model or embedded()
        model = Path(shutil.copy(source, Path(folder) / source.name))
        result = asyncio.run(run(model, only, arguments.quick))
    result = merged(result, arguments.out)
    with atomic_write(arguments.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
