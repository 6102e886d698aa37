"""What the server costs beside the same model called directly: the two take turns on the same photos in one run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loadgen import Reply, ServerProcess, closed_loop, descendants, exchange, request
from benchmarks.serve_target import Target

CLIENTS = 4
"""Impatient ones, so that the server always has a photo to go on with."""
WARMUP = 3


async def overhead(target: Target, model: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """A photo through the server and directly: milliseconds, photos a second, processor time.

    One alone is a request on a connection of its own, with masks in its answer, beside a Detector's call that ends with
    the same run lengths. Photos a second are those of CLIENTS clients beside ``Detector.stream``, one photo in the
    network at a time and one a core (``load(throughput=True)``). Processor time is that of all processes of the server,
    beside that of the calling process.
    """
    from blu_export.detector import load

    detector = await asyncio.to_thread(load, model)
    in_lanes = await asyncio.to_thread(load, model, throughput=True)
    server = await target.start()
    try:
        # The first calls of either do not count.
        served: list[float] = []
        direct: list[float] = []
        cpu = {"server": 0.0, "direct": 0.0}
        for index in range(-WARMUP, rounds):
            photo = target.photos[index % len(target.photos)]
            before = _cpu(server)
            reply = await exchange(server.port, request(photo))
            between, own = _cpu(server), time.process_time()
            if reply.status != 200:
                raise RuntimeError(f"the server answered {reply.status}: {reply.body[:200]!r}")
            start = time.perf_counter()
            await asyncio.to_thread(lambda photo=photo: detector(photo).rles())  # type: ignore[misc]
            if index >= 0:
                served.append(reply.seconds)
                direct.append(time.perf_counter() - start)
                cpu["server"] += between - before
                cpu["direct"] += time.process_time() - own
        rates = await _rates(server, target, {"direct": detector, "direct, one a core": in_lanes}, seconds)
    finally:
        await server.stop(signal.SIGKILL)
    medians = {"served": 1000 * float(np.median(served)), "direct": 1000 * float(np.median(direct))}
    return {
        "one_alone_ms": {name: round(value, 2) for name, value in medians.items()},
        "difference_ms": round(medians["served"] - medians["direct"], 2),
        "cpu_ms": {name: round(1000 * value / rounds, 1) for name, value in cpu.items()},
        **rates,
    }


async def _rates(
    server: ServerProcess, target: Target, detectors: dict[str, Any], seconds: float
) -> dict[str, dict[str, float]]:
    """Photos per second and milliseconds of processor time a photo, of the server and of each detector."""
    before, start = _cpu(server), time.perf_counter()
    replies: list[Reply] = await closed_loop(
        server.port, CLIENTS, seconds, lambda index: request(target.photos[index % len(target.photos)])
    )
    took = time.perf_counter() - start
    count = max(1, sum(reply.status == 200 for reply in replies))
    found = {"served": _rate(count, took, _cpu(server) - before)}
    photos = [target.photos[index % len(target.photos)] for index in range(count)]

    def stream(detector: Any) -> None:
        for photo in detector.stream(photos):
            photo.result().rles()

    for name, detector in detectors.items():
        before, start = time.process_time(), time.perf_counter()
        await asyncio.to_thread(stream, detector)
        found[name] = _rate(count, time.perf_counter() - start, time.process_time() - before)
    return found


def _rate(photos: int, seconds: float, cpu: float) -> dict[str, float]:
    return {"photos per s": round(photos / seconds, 2), "cpu ms": round(1000 * cpu / photos, 1)}


def _cpu(server: ServerProcess) -> float:
    """Processor seconds of a server and all of its processes up to now."""
    ticks = 0
    for pid in descendants(server.process.pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
