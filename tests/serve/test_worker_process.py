"""A real worker process: its results, its errors, its death."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_runner import CRASH, HANG, LOSE, REFUSE, FakeRunner, write_model

from blu_export.errors import EXIT_MISSING, BluError, MissingDependencyError, ModelFileError
from blu_export.serve import service
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker import VARIABLE_CANVAS_BYTES
from blu_export.serve.worker_process import WorkerProcess
from blu_export.workers.owner import WorkerLostError

HERE = Path(__file__).parents[1] / "support"


@pytest.fixture(autouse=True)
def find_the_fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))


def settings(path: Path, **changes: Any) -> ServeSettings:
    return ServeSettings(**{"model": path, "loader": "fake_runner:load", **changes})


def canvas(color: tuple[int, int, int], size: int = 64) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.full((size, size, 3), color, np.uint8)


WINDOW = np.array([0, 0, 64, 64], np.float32)


def test_the_worker_says_what_the_runner_says(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    canvases = [canvas((level, 0, 0)) for level in (10, 20, 30)]

    async def main() -> None:
        device = await WorkerProcess.start(settings(path))
        try:
            assert (device.info.name, device.info.runtime) == ("m", "onnxruntime")
            assert device.info.spec == FakeRunner(str(path)).spec
            raw = await device.run(canvases, [WINDOW] * 3, 30)
            detections, masks = FakeRunner(str(path)).run(np.stack(canvases), np.stack([WINDOW] * 3))
            np.testing.assert_array_equal(raw.detections, detections)
            np.testing.assert_array_equal(raw.masks, masks)
            again = await device.run(canvases[2:], [WINDOW], 30)
            np.testing.assert_array_equal(again.detections[0], detections[2])
            np.testing.assert_array_equal(raw.detections, detections)  # not overwritten
            assert device.together([(64, 64), (32, 32), *[(64, 64)] * 9]) == [0, 2, 3, 4]
        finally:
            await device.close()
        with pytest.raises(ProcessLookupError):
            os.kill(device.pid, 0)

    asyncio.run(main())


def test_canvases_that_follow_the_photo(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx", image_resize_mode="none")

    async def main() -> None:
        device = await WorkerProcess.start(settings(path))
        try:
            for size in (64, 192, 128):
                raw = await device.run([canvas((size, size, size), size)] * 2, [WINDOW * size / 64] * 2, 30)
                np.testing.assert_allclose(raw.detections[:, 0, 5], size / 255, atol=1e-6)
            assert device.together([(8192, 8192)] * 2) == [0]
            assert VARIABLE_CANVAS_BYTES < 3 * 8192 * 8193 and device.together([(8192, 8193)]) == []
        finally:
            await device.close()

    asyncio.run(main())


def test_canvases_of_any_size_go_in_lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLU_CORES", "2")
    path = write_model(tmp_path / "m.onnx", image_resize_mode="none", lanes=2)

    async def main() -> None:
        device = await WorkerProcess.start(settings(path))
        try:
            assert (device.info.lanes, device.most) == (2, 2)
            assert device.together([(64, 64), (8192, 8192), (64, 64)]) == [0]
            assert device.together([(64, 64), (128, 64), (64, 64)]) == [0, 1]
            # The fake's runner for lanes goes on only when both are in it.
            raw = await device.run([canvas((9, 9, 9)), canvas((30, 30, 30), 128)], [WINDOW, WINDOW * 2], 30)
            np.testing.assert_allclose(raw.detections[:, 0, 5], [9 / 255, 30 / 255], atol=1e-6)
            assert raw.masks[:, 0].any(axis=(1, 2)).all()
            with pytest.raises(BluError, match="The fake refuses"):
                await device.run([canvas((1, 1, 1)), canvas(REFUSE)], [WINDOW] * 2, 30)
            alone = await device.run([canvas((50, 50, 50))], [WINDOW], 30)
            np.testing.assert_allclose(alone.detections[0, 0, 5], 50 / 255, atol=1e-6)
        finally:
            await device.close()
        one = await WorkerProcess.start(settings(path, max_batch=1))
        assert (one.info.lanes, one.most) == (1, 1)
        await one.close()

    asyncio.run(main())


def test_an_error_of_the_runner_comes_through_and_the_worker_lives(tmp_path: Path) -> None:
    async def main() -> None:
        device = await WorkerProcess.start(settings(write_model(tmp_path / "m.onnx")))
        try:
            with pytest.raises(BluError, match="The fake refuses"):
                await device.run([canvas(REFUSE)], [WINDOW], 30)
            assert (await device.run([canvas((1, 2, 3))], [WINDOW], 30)).seconds >= 0
        finally:
            await device.close()

    asyncio.run(main())


@pytest.mark.parametrize(("color", "timeout", "why"), [(CRASH, 30, "crash"), (HANG, 0.2, "hang"), (LOSE, 30, "crash")])
def test_crash_hang_and_a_lost_gpu_end_the_worker(tmp_path: Path, color: Any, timeout: float, why: str) -> None:
    async def main() -> None:
        device = await WorkerProcess.start(settings(write_model(tmp_path / "m.onnx")))
        with pytest.raises(WorkerLostError, match=why):
            await device.run([canvas(color)], [WINDOW], timeout)
        with pytest.raises(ProcessLookupError):
            os.kill(device.pid, 0)

    asyncio.run(main())


def test_a_killed_idle_worker_is_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        device = await WorkerProcess.start(settings(write_model(tmp_path / "m.onnx")))
        os.kill(device.pid, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            await device.ended()
        with pytest.raises(WorkerLostError):
            await device.run([canvas((0, 0, 0))], [WINDOW], 30)

    asyncio.run(main())


def test_waiting_for_the_end_leaves_nothing_behind(tmp_path: Path) -> None:
    """Before every batch the server waits for work or for the worker's end, and gives up the latter."""

    def futures() -> int:
        gc.collect()
        return sum(isinstance(thing, asyncio.Future) for thing in gc.get_objects())

    async def main() -> None:
        device = await WorkerProcess.start(settings(write_model(tmp_path / "m.onnx")))
        before = futures()
        for _ in range(50):
            waiting = asyncio.create_task(device.ended())
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        del waiting
        assert futures() - before < 5
        await device.close()

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_is_the_workers_error(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ModelFileError, match=r"There is no model file .*m\.onnx"):
        asyncio.run(WorkerProcess.start(settings(path)))
    path.write_text("no JSON")
    with pytest.raises(ModelFileError, match="not a fake model"):
        asyncio.run(WorkerProcess.start(settings(path)))


def test_an_error_that_the_server_does_not_know_keeps_its_exit_code(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.onnx")
    with pytest.raises(MissingDependencyError, match=r"There is no GPU here\. Look\.") as raised:
        asyncio.run(WorkerProcess.start(settings(path, loader="fake_runner:load_without_gpu")))
    assert raised.value.exit_code == EXIT_MISSING


def test_a_loader_that_does_not_exist_is_a_lost_worker(tmp_path: Path) -> None:
    with pytest.raises(WorkerLostError):
        asyncio.run(WorkerProcess.start(settings(write_model(tmp_path / "m.onnx"), loader="no_such_module:load")))


@pytest.mark.skipif(sys.platform != "linux", reason="other C libraries return freed memory by themselves")
def test_freed_memory_goes_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Again and again while it serves, and not after."""
    given: list[int] = []
    monkeypatch.setattr(service, "TRIM_SECONDS", 0.01)
    library = SimpleNamespace(malloc_trim=given.append)
    monkeypatch.setattr(service, "ctypes", SimpleNamespace(CDLL=lambda name: library))

    async def serve() -> None:
        async with service.Service(settings(write_model(tmp_path / "m.onnx"))):
            while len(given) < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)

    asyncio.run(asyncio.wait_for(serve(), 30))
    assert set(given) == {0}
