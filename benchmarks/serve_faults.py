"""Faults of ``blu serve`` under load: its worker killed or hung, the server stopped, the model reloaded."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from benchmarks.loadgen import LOST, REFUSED, exchange, open_loop, summary
from benchmarks.serve_target import Target, ready, same


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
