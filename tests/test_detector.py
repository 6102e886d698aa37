"""Detector: order, batches, errors, bounded look-ahead; on a model whose answer is known by hand."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import blu_export
from blu_export.detector import Detector
from blu_export.errors import BluError, ImageError, ModelFileError, UsageError
from blu_export.image import Molded
from blu_export.runtime import Runner
from blu_export.stream import OVERTAKEN, Photo, group_by_canvas

FakeOnnx = Callable[..., Path]


@pytest.fixture(scope="module")
def detector(fake_onnx: FakeOnnx) -> Iterator[Detector]:
    detector = blu_export.load(fake_onnx(), threads=1)
    yield detector
    detector.runner.close()


def gray(level: int, height: int = 64, width: int = 64) -> NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def scores(photos: list[Photo]) -> list[float]:
    return [round(float(photo.result().scores[0]) * 255) for photo in photos]


def test_one_photo(detector: Detector) -> None:
    found = detector(gray(51))
    assert [detector.spec.class_names[index] for index in found.class_ids] == ["coat", "shoe"]
    np.testing.assert_allclose(found.scores, [0.2, 0.1], atol=1e-6)
    np.testing.assert_array_equal(found.rois[0], [0, 0, 64, 64])
    result = found.to_dict()
    assert {key: (value.dtype.name, value.shape) for key, value in result.items()} == {
        "rois": ("int32", (2, 4)),
        "class_ids": ("int32", (2,)),
        "scores": ("float32", (2,)),
        "masks": ("bool", (64, 64, 2)),
    }


def test_printing_takes_a_line(detector: Detector) -> None:
    runner = detector.runner
    assert repr(detector) == f"Detector({runner.runtime} float32 on CPU, 2 classes)"
    good, bad = detector.stream([gray(51), "no/photo.jpg"])
    assert repr(good) == "Photo(ndarray: Detections(2 on 64×64: coat 0.200, shoe 0.100))"
    assert repr(bad).startswith("Photo(no/photo.jpg: ") and str(bad.error) in repr(bad)


def test_path_bytes_pil_and_array_are_the_same_photo(detector: Detector, tmp_path: Path) -> None:
    image = gray(100, 48, 80)
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    expected = detector(image).to_dict()
    for source in (path, str(path), path.read_bytes(), Image.open(path)):
        for key, value in detector(source).to_dict().items():
            np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_a_list_of_photos_of_different_sizes_keeps_its_order(detector: Detector, batch: int) -> None:
    sizes = [(64, 64), (32, 64), (64, 32), (200, 100), (64, 64), (30, 61), (64, 64)]
    photos = [gray(10 * index, *size) for index, size in enumerate(sizes)]
    together = detector(photos, batch=batch)
    assert [found.image_size for found in together] == sizes
    for photo, found in zip(photos, together, strict=True):
        alone = detector(photo)
        np.testing.assert_array_equal(found.rois, alone.rois)
        np.testing.assert_array_equal(found.scores, alone.scores)


def test_an_empty_list(detector: Detector) -> None:
    assert detector([]) == []


def test_canvases_that_follow_the_photo_share_a_batch_only_when_equal(fake_onnx: FakeOnnx) -> None:
    path = fake_onnx(image_resize_mode="pad64", image_min_dim=64)
    detector = blu_export.load(path, threads=1)
    photos = [gray(51, *size) for size in [(64, 64), (64, 64), (64, 128), (64, 128), (64, 64)]]
    shapes = _record_batches(detector)
    found = detector(photos, batch=4)
    assert shapes == [(3, 64, 64, 3), (2, 64, 128, 3)]
    assert [len(each) for each in found] == [2] * 5


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([(64, 64), (64, 128), (128, 64), None])), st.integers(1, 4))
def test_grouping_is_bounded_and_loses_nothing(sizes: list[tuple[int, int] | None], batch: int) -> None:
    window = np.zeros(4, np.float32)
    read = 0

    def photos() -> Iterator[Photo]:
        nonlocal read
        for size in sizes:
            read += 1
            canvas = None if size is None else Molded(np.zeros((*size, 3), np.uint8), window, 1.0, size)
            yield Photo(None, molded=canvas)

    seen: list[int] = []
    for group in group_by_canvas(photos(), batch):
        assert 1 <= len(group) <= batch
        assert len({sizes[number] for number in group}) == 1
        assert read - min(group) <= OVERTAKEN * batch + 1
        seen += group
    assert sorted(seen) == list(range(len(sizes)))


def test_mixed_canvases_come_back_in_order(fake_onnx: FakeOnnx) -> None:
    detector = blu_export.load(fake_onnx(image_resize_mode="fit", image_max_dim=256), threads=1)
    shapes = _record_batches(detector)
    photos = [gray(10 + number, 64, 64 if number % 3 else 128) for number in range(24)]
    found = list(detector.stream(photos, batch=4))
    assert scores(found) == list(range(10, 34))
    assert shapes.count((4, 64, 64, 3)) == 4 and shapes.count((4, 64, 128, 3)) == 2


def _record_batches(detector: Detector) -> list[tuple[int, ...]]:
    shapes: list[tuple[int, ...]] = []
    run = detector.runner.run

    def recorded(canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        shapes.append(canvas.shape)
        return run(canvas, window)

    detector.runner.run = recorded  # type: ignore[method-assign, assignment]
    return shapes


def test_min_score(detector: Detector) -> None:
    strict = Detector(detector.runner, min_score=0.3)
    assert [len(strict(gray(level))) for level in (51, 102, 204)] == [0, 1, 2]
    assert strict(gray(51)).masks.shape == (64, 64, 0)
    with pytest.raises(UsageError, match="not between 0 and 1"):
        Detector(detector.runner, min_score=1.5)


def test_a_stream_goes_on_after_photos_that_cannot_be_read(detector: Detector, tmp_path: Path) -> None:
    sources = [gray(10), tmp_path / "none.jpg", gray(20), b"not an image", gray(30), gray(40)]
    photos = list(detector.stream(sources, batch=2))
    assert [photo.source is source for photo, source in zip(photos, sources, strict=True)] == [True] * 6
    assert [isinstance(photo.error, ImageError) for photo in photos] == [False, True, False, True, False, False]
    assert scores([photo for photo in photos if photo.error is None]) == [10, 20, 30, 40]
    with pytest.raises(ImageError, match="none.jpg"):
        photos[1].result()


def test_a_list_raises_what_a_stream_carries(detector: Detector) -> None:
    with pytest.raises(ImageError):
        detector([gray(10), b"not an image"])
    with pytest.raises(ImageError):
        detector(b"not an image")


class FailingRunner(Runner):
    """Fails on every batch that holds a black canvas."""

    runtime, device, precision = "fake", "CPU", "float32"

    def __init__(self, runner: Runner) -> None:
        self.spec = runner.spec
        self._runner = runner

    def run(
        self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if not canvas.reshape(len(canvas), -1).any(axis=1).all():
            raise BluError("no memory")
        return self._runner.run(canvas, window)


def test_a_batch_that_fails_carries_the_error(detector: Detector) -> None:
    failing = Detector(FailingRunner(detector.runner))
    photos = list(failing.stream([gray(10), gray(20), gray(0), gray(30), gray(40)], batch=2))
    assert [photo.error is not None for photo in photos] == [False, False, True, True, False]
    with pytest.raises(BluError, match="no memory"):
        failing(gray(0))


def test_a_photo_whose_result_is_no_number_carries_the_error(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = detector.runner.run

    def overflows(canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> object:
        detections, masks = run(canvas, window)
        detections[canvas[:, 32, 32, 0] == 20] = np.nan
        return detections, masks

    monkeypatch.setattr(detector.runner, "run", overflows)
    photos = list(detector.stream([gray(10), gray(20), gray(30)]))
    assert [isinstance(photo.error, ModelFileError) for photo in photos] == [False, True, False]


def test_a_defect_is_not_swallowed(detector: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("blu_export.detector.mold", broken)
    with pytest.raises(ZeroDivisionError):
        list(detector.stream([gray(1), gray(2)]))


@pytest.mark.parametrize(("batch", "workers"), [(1, 1), (3, 2), (4, 1)])
def test_an_endless_source_is_read_only_a_little_ahead(detector: Detector, batch: int, workers: int) -> None:
    taken = 0

    def endless() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        while True:
            taken += 1
            yield gray(taken % 256)

    stream = detector.stream(endless(), batch=batch, workers=workers)
    for count in range(1, 21):
        next(stream)
        assert taken <= count + 4 * batch + workers
    before = threading.active_count()
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before - workers - 1


def test_results_do_not_keep_the_canvases(detector: Detector) -> None:
    photos = list(detector.stream([gray(1), gray(2)]))
    assert all(photo.molded is None and photo.raw is None for photo in photos)


def test_timings_are_of_the_last_call(detector: Detector) -> None:
    detector([gray(1)] * 4, batch=2)
    assert list(detector.timings) == ["decode", "mold", "run", "unmold"]
    assert all(seconds > 0 for seconds in detector.timings.values())
    list(detector.stream([]))
    assert set(detector.timings.values()) == {0.0}


@pytest.mark.parametrize(("batch", "workers"), [(0, 1), (1, 0)])
def test_impossible_streams(detector: Detector, batch: int, workers: int) -> None:
    with pytest.raises(UsageError):
        detector.stream([], batch=batch, workers=workers)


def test_load_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\x00" * 100)
    with pytest.raises(ModelFileError, match="noise.onnx"):
        blu_export.load(tmp_path / "noise.onnx")


def test_as_many_photos_are_in_the_network_as_the_runner_has_lanes(detector: Detector) -> None:
    class Meeting(Runner):
        """Answers only when this many calls are under way at the same time."""

        spec, device, precision = detector.spec, "CPU", "float32"
        lanes = 3
        meeting = threading.Barrier(lanes, timeout=60)

        def run(
            self, canvas: NDArray[np.uint8], window: NDArray[np.float32]
        ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            self.meeting.wait()
            return detector.runner.run(canvas, window)

    levels = [10, 20, 30, 40, 50, 60]
    assert scores(list(Detector(Meeting()).stream(gray(level) for level in levels))) == levels
