"""The batcher, on a device that the test steers: order, batches, bad canvases, crashes, deadlines, admission."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.errors import BluError
from blu_export.serve.batching import Batcher, RawResult
from blu_export.serve.errors import BusyError, TooLargeError, UnavailableError, WorkerFailedError
from blu_export.serve.metrics import Metrics
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker_process import ModelInfo, RawBatch
from blu_export.spec import ModelSpec
from blu_export.workers.owner import WorkerLostError

SPEC = ModelSpec(("BG", "coat"), image_resize_mode="none")
REFUSED, DEADLY = 100, 200
"""Canvases of this value make the device raise, or die."""


class SteeredDevice:
    """Gives every canvas its own value back; waits for ``gate`` before each batch."""

    most = 4

    def __init__(self, mixes: bool = False) -> None:
        self.info = ModelInfo("m", SPEC, "steered", "CPU", "float32", 1, "a", 0.1)
        self.pid = 1
        self.mixes = mixes
        self.gate = asyncio.Event()
        self.gate.set()
        self.started = asyncio.Event()
        self.batches: list[list[int]] = []
        self.killed = asyncio.Event()
        self.closed = False

    def together(self, shapes: Sequence[tuple[int, ...]]) -> list[int]:
        if shapes[0] > (64, 64):
            return []
        return [place for place, shape in enumerate(shapes) if self.mixes or shape == shapes[0]][: self.most]

    async def run(
        self, canvases: Sequence[NDArray[np.uint8]], windows: Sequence[NDArray[np.float32]], timeout: float
    ) -> RawBatch:
        assert self.mixes or len({canvas.shape for canvas in canvases}) == 1
        values = [int(canvas[0, 0, 0]) for canvas in canvases]
        self.batches.append(values)
        self.started.set()
        await self.gate.wait()
        if DEADLY in values:
            raise WorkerLostError("crash: test")
        if REFUSED in values:
            raise BluError("refused")
        detections = np.array(values, np.float32).reshape(-1, 1, 1) * np.ones((1, 1, 6), np.float32)
        return RawBatch(detections, np.zeros((len(values), 1, 28, 28), np.float32), 0.1)

    async def ended(self) -> None:
        await self.killed.wait()
        raise WorkerLostError("crash: killed")

    async def close(self) -> None:
        self.closed = True


class Bench:
    """A batcher with its devices."""

    def __init__(self, **settings: Any) -> None:
        self.devices = [SteeredDevice()]
        self.replacements: list[SteeredDevice | Exception] = []
        self.closed = False
        self.batcher = Batcher(
            ServeSettings(Path("m.onnx"), **settings),
            self.devices[0],  # type: ignore[arg-type]
            Metrics(),
            self,  # type: ignore[arg-type]
        )

    async def start(self) -> SteeredDevice:
        """What the batcher asks of a ModelSnapshot, as is close."""
        next_one = self.replacements.pop(0) if self.replacements else SteeredDevice()
        if isinstance(next_one, Exception):
            raise next_one
        self.devices.append(next_one)
        return next_one

    def close(self) -> None:
        self.closed = True

    @property
    def batches(self) -> list[list[int]]:
        return [batch for device in self.devices for batch in device.batches]

    def send(self, value: int, size: int = 8) -> asyncio.Task[RawResult]:
        canvas = np.full((size, size, 3), value, np.uint8)
        return asyncio.create_task(self.batcher.run(canvas, np.zeros(4, np.float32)))

    async def occupy(self) -> asyncio.Task[RawResult]:
        """Hold the device with a canvas of value 0."""
        self.devices[-1].gate.clear()
        task = self.send(0)
        await self.devices[-1].started.wait()
        return task

    def free(self) -> None:
        self.devices[-1].gate.set()


def run(test: Callable[[Bench], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        bench = Bench(**settings)
        try:
            async with asyncio.timeout(20):
                await test(bench)
        finally:
            await bench.batcher.close()

    asyncio.run(main())


def value(result: RawResult) -> int:
    return int(result.detections[0, 0])


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_what_comes_while_the_device_is_busy_goes_together() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        rest = [bench.send(index) for index in range(1, 7)]
        await settle()
        assert bench.batcher.queued == 6
        bench.free()
        assert [value(result) for result in await asyncio.gather(first, *rest)] == [0, 1, 2, 3, 4, 5, 6]
        assert bench.batches == [[0], [1, 2, 3, 4], [5, 6]]
        assert (await rest[0]).batch == 4

    run(test)


def test_batch_delay_waits_for_companions_but_not_when_full() -> None:
    async def test(bench: Bench) -> None:
        tasks = [bench.send(index) for index in range(4)]
        await asyncio.gather(*tasks)
        assert bench.batches == [[0, 1, 2, 3]]

    run(test, batch_delay=30.0)


def test_canvases_of_other_sizes_wait_for_their_own_batch() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        rest = [bench.send(1), bench.send(2, size=16), bench.send(3)]
        await settle()
        bench.free()
        await asyncio.gather(first, *rest)
        assert bench.batches == [[0], [1, 3], [2]]

    run(test)


def test_canvases_of_other_sizes_go_together_where_the_device_takes_them() -> None:
    async def test(bench: Bench) -> None:
        bench.devices[0].mixes, bench.devices[0].most = True, 2
        first = await bench.occupy()
        rest = [bench.send(1), bench.send(2, size=16), bench.send(3)]
        await settle()
        bench.free()
        await asyncio.gather(first, *rest)
        assert bench.batches == [[0], [1, 2], [3]]

    run(test)


@pytest.mark.parametrize(("canvas", "devices"), [(REFUSED, 1), (DEADLY, 3)])
def test_a_bad_canvas_fails_alone_and_a_dead_worker_is_replaced(canvas: int, devices: int) -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        rest = [bench.send(1), bench.send(canvas), bench.send(3)]
        await settle()
        bench.free()
        results = await asyncio.gather(first, *rest, return_exceptions=True)
        assert isinstance(results[2], WorkerFailedError)
        assert [value(result) for result in results if isinstance(result, RawResult)] == [0, 1, 3]
        assert bench.batches == [[0], [1, canvas, 3], [1], [canvas], [3]]
        assert len(bench.devices) == devices
        assert value(await bench.send(4)) == 4

    run(test)


def test_a_worker_that_dies_idle_is_replaced_before_the_next_photo() -> None:
    async def test(bench: Bench) -> None:
        bench.devices[0].killed.set()
        await settle()
        assert len(bench.devices) == 2
        assert value(await bench.send(1)) == 1
        assert bench.batches == [[1]]

    run(test)


def test_who_gives_up_never_reaches_the_device() -> None:
    async def test(bench: Bench) -> None:
        first = await bench.occupy()
        gone, stays = bench.send(1), bench.send(2)
        await settle()
        gone.cancel()
        await settle()
        assert bench.batcher.queued == 1
        bench.free()
        await asyncio.gather(first, stays)
        assert bench.batches == [[0], [2]]

    run(test)


def test_who_gives_up_during_a_crash_is_not_run_again() -> None:
    async def test(bench: Bench) -> None:
        bench.devices[0].gate.clear()
        gone = bench.send(DEADLY)
        await bench.devices[0].started.wait()
        gone.cancel()
        await settle()
        bench.free()
        assert value(await bench.send(1)) == 1
        assert bench.batches == [[DEADLY], [1]]

    run(test)


def test_admission_counts_places_and_gives_them_back() -> None:
    async def test(bench: Bench) -> None:
        with bench.batcher.admit(), bench.batcher.admit():
            with pytest.raises(BusyError) as refusal, bench.batcher.admit():
                pass
            assert refusal.value.retry_after >= 1
        with bench.batcher.admit():
            assert bench.batcher.load.inside == 1

    run(test, queue=2)


def test_admission_refuses_what_would_wait_too_long() -> None:
    async def test(bench: Bench) -> None:
        bench.batcher.load.per_photo = 3.0
        admit = bench.batcher.admit
        with admit(), admit(), admit(), pytest.raises(BusyError, match=r"9\.0 s"), admit():
            pass

    run(test, max_wait=8.0)


def test_tiles_take_places_but_only_those_before_the_device_make_others_wait() -> None:
    async def test(bench: Bench) -> None:
        admit, load = bench.batcher.admit, bench.batcher.load
        load.per_photo = 1.0
        with admit(), admit(6, 2):
            assert (load.inside, load.in_line) == (7, 3)
            with pytest.raises(BusyError, match="7 photos ahead"), admit(2):
                pass
            with admit(), pytest.raises(BusyError, match=r"4\.0 s"), admit():  # no place is left
                pass
            with admit(1, 0):
                assert load.inside == 8
        assert (load.inside, load.in_line) == (0, 0)

    run(test, queue=8, max_wait=10.0)


def test_a_slow_device_still_takes_one_photo_and_the_next() -> None:
    async def test(bench: Bench) -> None:
        bench.batcher.load.per_photo = 100.0
        with bench.batcher.admit(), bench.batcher.admit(), pytest.raises(BusyError), bench.batcher.admit():
            pass

    run(test)


def test_the_estimate_follows_the_device() -> None:
    async def test(bench: Bench) -> None:
        bench.batcher.load.per_photo = 1.0
        await bench.send(1)
        assert bench.batcher.load.per_photo == pytest.approx(1.0 + 0.2 * (0.1 - 1.0))

    run(test)


def test_a_canvas_larger_than_the_memory_is_refused() -> None:
    async def test(bench: Bench) -> None:
        with pytest.raises(TooLargeError, match="65x65"):
            await bench.send(1, size=65)

    run(test)


def test_while_no_worker_starts_nothing_is_admitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blu_export.serve.batching.MAX_BACKOFF", 0.0)

    async def test(bench: Bench) -> None:
        attempts = 0

        async def second_time_lucky() -> SteeredDevice:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                raise BluError("no memory")
            with pytest.raises(UnavailableError), bench.batcher.admit():
                pass
            assert not bench.batcher.ready
            return SteeredDevice()

        bench.start = second_time_lucky  # type: ignore[assignment]
        bench.devices[0].killed.set()
        assert value(await bench.send(1)) == 1
        assert attempts == 2
        with bench.batcher.admit():
            assert bench.batcher.ready

    run(test)


def test_close_closes_the_device_and_drops_its_files() -> None:
    bench: list[Bench] = []

    async def test(made: Bench) -> None:
        bench.append(made)
        assert made.batcher.ready and made.batcher.alive

    run(test)
    assert bench[0].devices[0].closed and bench[0].closed
    assert not bench[0].batcher.ready
