"""``blu serve`` under load: throughput, latency, overload, memory over time."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.loadgen import MEGABYTE, Reply, exchange, open_loop, percentile, request, summary
from benchmarks.serve_target import Target, pace


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
    """Several times what the server can do, then the time until it has recovered; health answers throughout."""
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
        # Recovered: a photo takes no longer than three times what it takes in a quiet server.
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
