"""Hostile clients of ``blu serve``: malformed requests, decompression bombs, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from typing import Any

from benchmarks.loadgen import MEGABYTE, Reply, exchange, open_loop, request, summary, until
from benchmarks.malformed import KINDS
from benchmarks.malformed import bombs as packed_bombs
from benchmarks.serve_target import Target


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
    """Connections that say nothing, half a head, or half a body; meanwhile photos are answered as usual."""
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
