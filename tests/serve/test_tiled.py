"""Tiles over HTTP: the detections of the library, in as many windows as the server has places for."""

from __future__ import annotations

import io

import httpx
import numpy as np
import pytest
from fake_runner import REFUSE, FakeRunner
from loopback import Running, Start, metric, png
from PIL import Image

from blu_export.client import Client
from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.image import mold
from blu_export.serve.batching import RawResult
from blu_export.serve.render import NPZ
from blu_export.serve.tiled import MAX_WINDOWS, WindowRun, merge
from blu_export.spec import ModelSpec
from blu_export.tiles import Tiling


def stripes() -> bytes:
    """A photo of 96x160 whose brightness, and with it the fake's scores, differs from window to window."""
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(20, 220, 96 * 160 * 3).reshape(96, 160, 3).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


PHOTO = stripes()


@pytest.mark.parametrize(("tile", "overlap", "windows"), [(64, None, 7), (64, 0.5, 9), (200, None, 1)])
def test_a_photo_in_tiles_is_as_the_library_has_it(
    shared_server: Running, client: httpx.Client, tile: int, overlap: float | None, windows: int
) -> None:
    expected = Detector(FakeRunner(str(shared_server.model)))(
        PHOTO, tile=tile, overlap=0.2 if overlap is None else overlap
    )
    wanted = {"tile": tile} | ({} if overlap is None else {"overlap": overlap})
    answer = client.post("/v1/predict", content=PHOTO, params=wanted)
    assert answer.status_code == 200, answer.text
    assert answer.json()["tiles"] == {
        "side": tile,
        "overlap": 0.2 if overlap is None else overlap,
        "windows": windows,
        "dropped": 0,
    }
    with Client(shared_server.url) as ours:
        found = ours.predict(PHOTO, tile=tile, overlap=overlap)
    np.testing.assert_array_equal(found.rois, expected.rois)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    np.testing.assert_array_equal(found.masks, expected.masks)
    with np.load(
        io.BytesIO(client.post("/v1/predict", content=PHOTO, params=wanted, headers={"accept": NPZ}).content)
    ) as arrays:
        np.testing.assert_array_equal(arrays["rois"], expected.rois)
    drawn = client.post("/v1/predict", content=PHOTO, params=wanted, headers={"accept": "image/png"})
    with Image.open(io.BytesIO(drawn.content)) as picture:
        assert picture.size == (160, 96)


def test_without_tiles_an_answer_does_not_speak_of_them(client: httpx.Client) -> None:
    assert "tiles" not in client.post("/v1/predict", content=PHOTO).json()


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"tile": 31}, "32"),
        ({"tile": 0}, "32"),
        ({"tile": -64}, "32"),
        ({"tile": 10**30}, "tile"),
        ({"tile": "big"}, "integer"),
        ({"tile": ""}, "tile"),
        ({"tile": 64, "overlap": 0.95}, "0.9"),
        ({"tile": 64, "overlap": "nan"}, "overlap"),
        ({"overlap": 0.3}, "no tile"),
        ({"tile": 32, "overlap": 0.9}, f"at most {MAX_WINDOWS}"),
    ],
)
def test_tiles_that_cannot_be_are_400_and_said(client: httpx.Client, wanted: dict[str, object], said: str) -> None:
    answer = client.post("/v1/predict", content=PHOTO, params={key: str(value) for key, value in wanted.items()})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"] and answer.json()["error"]["fix"]


def test_millions_of_tiles_are_counted_not_made() -> None:
    tiling = Tiling(32, 0.9)
    assert tiling.count((7000, 7000)) > 4_000_000
    for side, overlap, size in ((64, 0.2, (96, 160)), (64, 0.5, (64, 65)), (64, 0.0, (64, 64)), (32, 0.9, (33, 20))):
        assert Tiling(side, overlap).count(size) == len(Tiling(side, overlap).windows(size))


def test_tiles_count_as_photos_and_other_photos_get_their_turn(launch: Start) -> None:
    server = launch(queue=9, max_batch=2)
    with server.client() as client:
        assert client.post("/v1/predict", content=PHOTO, params={"tile": 64, "overlap": 0.5}).json()["batch"] <= 2
        too_many = client.post("/v1/predict", content=PHOTO, params={"tile": 48})
        assert too_many.status_code == 400 and "at most 9" in too_many.json()["error"]["message"]
        assert metric(client, "blu_photos_inside") == 0


def test_tiles_that_would_take_too_long_are_refused_before_they_run(launch: Start) -> None:
    server = launch(seconds=0.2, timeout=1.5, max_batch=1)
    with server.client() as client:
        refused = client.post("/v1/predict", content=PHOTO, params={"tile": 64, "overlap": 0.5})
        assert refused.status_code == 400 and "9 windows take about 2 s" in refused.json()["error"]["message"]
        assert client.post("/v1/predict", content=PHOTO, params={"tile": 160}).status_code == 200


def test_a_window_that_fails_fails_its_photo_and_the_server_goes_on(client: httpx.Client) -> None:
    pixels = np.full((96, 160, 3), 90, np.uint8)
    pixels[:64, :64] = REFUSE
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    answer = client.post("/v1/predict", content=buffer.getvalue(), params={"tile": 64})
    assert (answer.status_code, "refuses" in answer.json()["error"]["message"]) == (500, True)
    assert client.post("/v1/predict", content=PHOTO, params={"tile": 64}).status_code == 200


def test_what_is_no_photo_in_tiles(client: httpx.Client) -> None:
    for body, status in ((b"no photo", 415), (PHOTO[:60], 422), (png(height=1100, width=1100), 413)):
        assert client.post("/v1/predict", content=body, params={"tile": 64}).status_code == status


def crowd(count: int, size: tuple[int, int], spec: ModelSpec) -> WindowRun:
    """``count`` instances on one window, each over all of it."""
    rows = np.zeros((count, 6), np.float32)
    rows[:] = (0, 0, 1, 1, 1, 0)
    rows[:, 5] = np.linspace(0.9, 0.1, count)
    molded = mold(np.zeros((*size, 3), np.uint8), spec)
    return WindowRun(molded, RawResult(rows, np.ones((count, 28, 28), np.float32), 0.0, 0.0, 1))


def test_the_best_are_merged_and_the_rest_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(("BG", "coat"), image_min_dim=64, image_max_dim=64)
    runs, windows = [crowd(40, (64, 64), spec)], [(0, 0, 64, 64)]

    def merged() -> tuple[Detections, int]:
        return merge(runs, windows, (64, 64), spec)

    assert [len(merged()[0]), merged()[1]] == [40, 0]
    monkeypatch.setattr("blu_export.serve.tiled.MAX_INSTANCES", 12)
    found, dropped = merged()
    assert (len(found), dropped) == (12, 28)
    np.testing.assert_allclose(found.scores, np.linspace(0.9, 0.1, 40)[:12], atol=1e-6)
    # The first costs its own area, the next one that and a comparison, the third two: 1 + 2 + 3 areas.
    monkeypatch.setattr("blu_export.serve.tiled.MAX_MERGE_WORK", 6 * 64 * 64)
    found, dropped = merged()
    assert (len(found), dropped) == (3, 37)
