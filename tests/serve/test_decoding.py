"""Decoders: what they give is the library's; a photo that hangs, kills or bloats one costs no one else an answer."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import struct
import sys
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import PATIENCE, Running, Start, gray, metric, png, until
from PIL import Image

from blu_export.errors import BluError
from blu_export.image import decode, mold
from blu_export.serve import decoder_process
from blu_export.serve.decoder_process import DecoderProcess, Upload
from blu_export.serve.decoding import Decoders
from blu_export.serve.errors import (
    BadRequestError,
    BusyError,
    TooLargeError,
    UnreadableImageError,
    UnsupportedTypeError,
)
from blu_export.serve.metrics import Metrics
from blu_export.serve.settings import ServeSettings
from blu_export.serve.worker_process import ModelInfo
from blu_export.spec import ModelSpec

INFO = ModelInfo("m", ModelSpec(("BG", "coat"), image_min_dim=64, image_max_dim=64), "", "", "", 1, "", 0.0)
PHOTO = png((90, 120, 150), 40, 72)
Test = Callable[[Decoders], Awaitable[None]]


def with_decoders(test: Test, **settings: Any) -> None:
    """Run a test with a pool of its own."""

    async def main() -> None:
        decoders = Decoders(ServeSettings(Path("m.onnx"), **settings), Metrics())
        try:
            await decoders.start()
            await test(decoders)
        finally:
            await decoders.close()

    asyncio.run(main())


def image(body: bytes, content_type: str = "") -> Upload:
    return Upload(body, "image", {"content_type": content_type})


def test_canvases_are_those_of_the_library() -> None:
    pixels = decode(PHOTO)
    expected = mold(pixels, INFO.spec)
    wanted = {"id": "7", "outputs": {"rois": True}, "named": True}
    tensor = {"datatype": "UINT8", "shape": list(pixels.shape), "wanted": wanted}
    form = b'--b\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + PHOTO + b"\r\n--b--\r\n"

    async def test(decoders: Decoders) -> None:
        uploads = [
            image(PHOTO),
            image(form, "multipart/form-data; boundary=b"),
            Upload(pixels.tobytes(), "tensor", tensor),
        ]
        for upload in uploads:
            found = await decoders.decode(upload, INFO)
            np.testing.assert_array_equal(found.molded.canvas, expected.canvas)
            np.testing.assert_array_equal(found.molded.window, expected.window)
            assert (found.molded.scale, found.molded.image_size) == (expected.scale, (40, 72))
            async with decoders.pixels(upload, INFO) as photo:
                np.testing.assert_array_equal(photo, pixels)
        assert found.wanted is not None and found.wanted.id == "7"
        other = ModelInfo("m", INFO.spec.replace(image_min_dim=128, image_max_dim=128), "", "", "", 1, "", 0.0)
        assert (await decoders.decode(image(PHOTO), other)).molded.canvas.shape == (128, 128, 3)
        assert (await decoders.decode(image(PHOTO), INFO)).molded.canvas.shape == (64, 64, 3)

    with_decoders(test, workers=1)


def test_errors_are_those_of_the_request() -> None:
    cases: list[tuple[Upload, type[BluError]]] = [
        (image(b"no photo"), UnsupportedTypeError),
        (image(PHOTO[:-40]), UnreadableImageError),
        (image(png(height=1001, width=1000)), TooLargeError),
        (image(PHOTO, "text/html"), UnsupportedTypeError),
        (image(b""), BadRequestError),
        (Upload(b"[]", "infer", {"header_length": None}), BadRequestError),
    ]

    async def test(decoders: Decoders) -> None:
        for upload, kind in cases:
            with pytest.raises(kind):
                await decoders.decode(upload, INFO)
        await decoders.decode(image(PHOTO), INFO)
        assert restarts(decoders) == {}

    with_decoders(test, workers=1, max_pixels=1_000_000)


def restarts(decoders: Decoders) -> dict[str, float]:
    (family,) = decoders._metrics.restarts.collect()
    return {sample.labels["reason"]: sample.value for sample in family.samples if sample.name.endswith("_total")}


def pids(decoders: Decoders) -> list[int]:
    return [each.child.pid for each in decoders._all]


def test_a_photo_that_takes_too_long_goes_with_its_decoder() -> None:
    async def test(decoders: Decoders) -> None:
        before = pids(decoders)
        os.kill(before[0], signal.SIGSTOP)  # as one whose photo takes for ever
        with pytest.raises(UnreadableImageError, match="took more than"):
            await decoders.decode(image(PHOTO), INFO)
        await decoders.decode(image(PHOTO), INFO)
        assert pids(decoders) != before
        assert restarts(decoders) == {"decoder hang": 1}

    with_decoders(test, workers=1, timeout=6, max_wait=PATIENCE)


def test_killed_decoders_cost_no_photo() -> None:
    async def test(decoders: Decoders) -> None:
        for pid in pids(decoders):
            os.kill(pid, signal.SIGKILL)
        found = await asyncio.gather(*(decoders.decode(image(PHOTO), INFO) for _ in range(4)))
        assert len(found) == 4

    with_decoders(test, max_wait=PATIENCE)


def test_a_photo_that_kills_decoders_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(decoders: Decoders) -> None:
        run = DecoderProcess.run

        async def killed(self: Any, *arguments: Any) -> Any:
            os.kill(self.child.pid, signal.SIGKILL)
            return await run(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(DecoderProcess, "run", killed)
            with pytest.raises(UnreadableImageError, match="crashes its decoder"):
                await decoders.decode(image(PHOTO), INFO)
        await decoders.decode(image(PHOTO), INFO)

    with_decoders(test, max_wait=PATIENCE)


@pytest.mark.skipif(sys.platform != "linux", reason="only there is the memory of a process limited")
def test_a_photo_that_needs_too_much_memory_leaves_its_decoder_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "BYTES_PER_PIXEL", 0)
    monkeypatch.setattr(decoder_process, "SPARE_MEMORY", 2**24)
    buffer = io.BytesIO()
    Image.new("RGB", (2500, 2500)).save(buffer, "PNG")

    async def test(decoders: Decoders) -> None:
        before = pids(decoders)
        with pytest.raises(TooLargeError, match="needs more memory"):
            await decoders.decode(image(buffer.getvalue()), INFO)
        await decoders.decode(image(PHOTO), INFO)
        assert pids(decoders) == before

    with_decoders(test, workers=1)


def test_when_all_decoders_are_busy_a_photo_is_told_to_come_again() -> None:
    async def test(decoders: Decoders) -> None:
        (pid,) = pids(decoders)
        os.kill(pid, signal.SIGSTOP)
        first = asyncio.create_task(decoders.decode(image(PHOTO), INFO))
        await asyncio.sleep(0)
        with pytest.raises(BusyError) as caught:
            await decoders.decode(image(PHOTO), INFO)
        assert caught.value.retry_after
        os.kill(pid, signal.SIGCONT)
        await first

    with_decoders(test, workers=1, max_wait=0.1)


def test_a_caller_that_gives_up_leaves_a_usable_decoder() -> None:
    async def test(decoders: Decoders) -> None:
        (pid,) = pids(decoders)
        os.kill(pid, signal.SIGSTOP)
        using = asyncio.create_task(decoders.decode(image(png((10, 10, 10), 64, 64)), INFO))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(decoders.decode(image(PHOTO), INFO))
        await asyncio.sleep(0)
        for task in (using, waiting):
            task.cancel()
        await asyncio.gather(using, waiting, return_exceptions=True)
        os.kill(pid, signal.SIGCONT)
        found = await decoders.decode(image(png((20, 20, 20), 64, 64)), INFO)
        assert found.molded.canvas.mean() == 20  # its own, not the one that was given up
        assert pids(decoders) == [pid]

    with_decoders(test, workers=1, max_wait=PATIENCE)


def test_without_decoders_the_server_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(settings: ServeSettings) -> Any:
        raise BluError("No process can be started.")

    async def test(decoders: Decoders) -> None:
        assert decoders.ready
        with monkeypatch.context() as patch:
            patch.setattr(DecoderProcess, "start", fail)
            os.kill(pids(decoders)[0], signal.SIGKILL)
            while decoders.ready:
                await asyncio.sleep(0.01)
        await decoders.decode(image(PHOTO), INFO)
        assert decoders.ready

    with_decoders(test, workers=1, timeout=0.5, max_wait=PATIENCE)


def test_large_photos_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_process, "SMALL_PHOTO", 1000)

    async def test(decoders: Decoders) -> None:
        photos = [png((level, level, level), 64, 64) for level in range(0, 80, 10)]
        found = await asyncio.gather(*(decoders.decode(image(photo), INFO) for photo in photos))
        assert [each.molded.canvas.mean() for each in found] == list(range(0, 80, 10))
        async with decoders.pixels(image(photos[0]), INFO):  # all that there are, though there is a free decoder
            with pytest.raises(BusyError, match="large photos"):
                await decoders.decode(image(photos[1]), INFO)
            small = await asyncio.gather(*(decoders.decode(image(png(height=10, width=10)), INFO) for _ in "1234"))
            assert len(small) == 4
        await decoders.decode(image(photos[1]), INFO)
        assert decoders._large._free == 64 * 64

    with_decoders(test, max_pixels=64 * 64, max_wait=1.0)


def decoder_handles(server: Running) -> list[int]:
    return [os.pidfd_open(pid) for pid in server.decoders()]


def test_over_http_a_hanging_photo_delays_no_other_and_no_end(launch: Start) -> None:
    server = launch(timeout=6, grpc_port=0)  # a third of it for decoding: ample for a small photo
    handles: list[int] = []
    with server.client() as client, ThreadPoolExecutor(2) as pool:
        assert len(server.decoders()) == 2
        for pid in server.decoders():
            os.kill(pid, signal.SIGSTOP)  # as with photos that take for ever
        hanging = [pool.submit(server.post, gray(51)) for _ in "12"]
        until(lambda: metric(client, "blu_photos_inside") == 2)
        answers = [client.post("/v1/predict", content=gray(51)).status_code for _ in "123"]
        assert set(answers) <= {200, 429}
        assert [each.result().status_code for each in hanging] == [422, 422]
        assert client.get("/v2/health/ready").status_code == 200
        until(lambda: len(server.decoders()) == 2)
        assert client.post("/v1/predict", content=gray(51)).status_code == 200
        handles = decoder_handles(server)
        for pid in server.decoders():
            os.kill(pid, signal.SIGSTOP)
        last = pool.submit(server.post, gray(51))
        until(lambda: metric(client, "blu_photos_inside") == 1)
        assert server.stop() == 0
        assert last.result().status_code == 422
    for handle in handles:
        assert select.select([handle], [], [], PATIENCE)[0], "a decoder outlives its server"
        os.close(handle)


@pytest.mark.skipif(sys.platform != "linux", reason="only there is the memory of a process limited")
def test_a_small_photo_may_not_take_a_large_ones_memory() -> None:
    tile = zlib.compress(bytes(20_000 * 20_000), 9)  # for an image of 16 pixels
    tags = [(256, 4, 4), (257, 4, 4), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, 20_000), (323, 4, 20_000), (324, 4, 8), (325, 4, len(tile))]
    entries = b"".join(struct.pack("<HHLL", tag, kind, 1, value) for tag, kind, value in tags)
    body = b"II*\0" + struct.pack("<L", 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + entries + bytes(4)

    async def test(decoders: Decoders) -> None:
        before = pids(decoders)
        with pytest.raises((UnreadableImageError, TooLargeError)):
            await decoders.decode(image(body), INFO)
        await decoders.decode(image(PHOTO), INFO)
        assert pids(decoders) == before
        peak = Path(f"/proc/{before[0]}/status").read_text().partition("VmHWM:")[2].split()[0]
        assert int(peak) < 300_000  # kB; the tile has 400,000

    with_decoders(test, workers=1)
