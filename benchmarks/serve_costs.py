"""What each part of the server costs: the network alone, the worker process, a decoder process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


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
