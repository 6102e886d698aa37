"""Hostile clients of ``blu serve``: malformed requests, decompression bombs, slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

from benchmarks.loadgen import LOST, Reply, exchange, open_loop, request, summary, until
from benchmarks.malformed import KINDS
from benchmarks.malformed import bombs as packed_bombs
from benchmarks.serve_target import Target, warm_server


async def abuse(target: Target, count: int) -> dict[str, Any]:
    """Malformed requests of all kinds, good photos among them: 4xx for these, right answers for those."""
    rng = random.Random(0)
    kinds = list(KINDS)
    statuses: dict[str, set[int]] = {kind: set() for kind in kinds}
    room = asyncio.Semaphore(8)

    async def one(port: int, index: int) -> Reply:
        kind = kinds[index % len(kinds)]
        data = KINDS[kind](rng).replace(b"/v2/models/MODEL/", f"/v2/models/{target.name}/".encode(), 1)
        async with room:
            reply = await exchange(port, data)
        statuses[kind].add(reply.status)
        return reply

    async with warm_server(target) as warm:
        port = warm.server.port
        attacking = asyncio.gather(*(one(port, index) for index in range(count)))
        fine: list[Reply] = []
        while not attacking.done():
            fine.append(await exchange(port, target.request(len(fine))))
        replies = await attacking
        growth_mb = warm.growth_mb()
    return {
        "requests": len(replies),
        "kinds": len(kinds),
        "by_status": {str(s): sum(reply.status == s for reply in replies) for s in sorted({r.status for r in replies})},
        "not_4xx": sorted(kind for kind, found in statuses.items() if any(not 400 <= s < 500 for s in found)),
        "good_photos": summary(fine) | {"wrong": target.wrong(fine)},
        "growth_mb": growth_mb,
    }


async def bombs(target: Target, count: int = 8) -> dict[str, Any]:
    """Small files that are huge photos: refused on their header, before any pixel is decoded."""
    files = packed_bombs()
    async with warm_server(target) as warm:
        port = warm.server.port
        replies = await asyncio.gather(*(exchange(port, request(each)) for each in [*files.values()] * count))
        growth_mb = warm.growth_mb()
    return {
        "files": list(files),
        "requests": len(replies),
        "statuses": sorted({reply.status for reply in replies}),
        "lost": sorted({reply.body.decode("utf-8", "replace") for reply in replies if reply.status == LOST}),
        "growth_mb": growth_mb,
    }


async def slow_loris(target: Target, connections: int, seconds: float, **settings: Any) -> dict[str, Any]:
    """Connections that say nothing, half a head, or half a body; meanwhile photos are answered as usual."""
    openings = (
        b"",
        b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nX-Slow: ",
        b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nContent-Length: 100000\r\n\r\n\xff\xd8\xff",
    )
    closed = 0

    async def crawl(port: int, index: int) -> None:
        nonlocal closed
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
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

    async with warm_server(target, **settings) as warm:
        port = warm.server.port
        crawling = [asyncio.create_task(crawl(port, index)) for index in range(connections)]
        replies = await open_loop(port, 0.5 * target.rate, seconds, target.request)
        growth_mb = warm.growth_mb()
        gone = await until(lambda: _true(closed == connections), 60)
        for task in crawling:
            task.cancel()
    return summary(replies) | {
        "connections": connections,
        "wrong": target.wrong(replies),
        "growth_mb": growth_mb,
        "all_closed": gone is not None,
    }


async def _true(value: bool) -> bool:
    return value
