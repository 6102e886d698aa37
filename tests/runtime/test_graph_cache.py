"""Optimized graphs on disk: the same answers, and no harm from damage, races or a full cache."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from blu_export.benchmark.recompose import recompose
from blu_export.cache import cache_folder, keep_newest
from blu_export.runtime import RunnerOptions, load_runner
from blu_export.runtime.graph_cache import BYTES_ALLOWED
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

FakeOnnx = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLU_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "onnxruntime"


def _detect(path: Path) -> list[np.ndarray]:
    canvas = np.full((1, 64, 64, 3), 102, np.uint8)
    with load_runner(path, RunnerOptions("onnxruntime")) as runner:
        return list(runner.run(canvas, np.array([[0, 0, 64, 64]], np.float32)))


def test_the_second_load_takes_the_stored_graph_and_answers_alike(fake_onnx: FakeOnnx, cache: Path) -> None:
    path = fake_onnx()
    first = _detect(path)
    (entry,) = cache.iterdir()
    stored = (entry / "graph.onnx").stat().st_mtime_ns
    for before, after in zip(first, _detect(path), strict=True):
        np.testing.assert_array_equal(before, after)
    assert [entry] == list(cache.iterdir())
    assert (entry / "graph.onnx").stat().st_mtime_ns == stored


def test_another_file_has_an_entry_of_its_own(fake_onnx: FakeOnnx, cache: Path) -> None:
    _detect(fake_onnx())
    _detect(fake_onnx(detection_min_confidence=0.5))
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"not a graph", None])
def test_a_damaged_entry_is_made_again(fake_onnx: FakeOnnx, cache: Path, damage: bytes | None) -> None:
    path = fake_onnx()
    first = _detect(path)
    (entry,) = cache.iterdir()
    graph = entry / "graph.onnx"
    graph.write_bytes(graph.read_bytes()[:200] if damage is None else damage)
    np.testing.assert_array_equal(first[0], _detect(path)[0])
    assert (entry / "graph.onnx").stat().st_size > 200


def test_switched_off_nothing_is_kept(fake_onnx: FakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLU_CACHE", "off")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("onnxruntime") is None
    _detect(fake_onnx())
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    fake_onnx: FakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BLU_CACHE", str(tmp_path / "file" / "below"))
    assert cache_folder("onnxruntime") is None
    assert _detect(fake_onnx())[0][0, 0, 5] == pytest.approx(0.4, abs=1e-6)


def test_a_cache_that_can_only_be_read_is_read(
    fake_onnx: FakeOnnx, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = fake_onnx()
    _detect(path)
    (entry,) = cache.iterdir()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "utime", refuse)
    assert _detect(path)[0][0, 0, 5] == pytest.approx(0.4, abs=1e-6)
    assert entry.is_dir() and "made again" not in caplog.text


@pytest.fixture
def follows_photo(small_onnx: Path, tmp_path: Path) -> Path:
    """The small model with canvases that fit."""
    path = tmp_path / "fit.onnx"
    path.write_bytes(recompose(small_onnx, image_resize_mode="fit").data)
    return path


def test_sums_have_named_shapes_where_the_canvas_follows_the_photo(follows_photo: Path, cache: Path) -> None:
    canvas = np.random.default_rng(0).integers(0, 256, (2, 64, 128, 3), np.uint8)
    window = np.array([[0, 0, 64, 128], [0, 0, 50, 100]], np.float32)
    with OnnxRuntimeRunner(follows_photo, "cpu") as plain, OnnxRuntimeRunner(follows_photo, "cpu", store=True) as named:
        for first, second in zip(plain.run(canvas, window), named.run(canvas, window), strict=True):
            assert first.any()
            np.testing.assert_array_equal(first, second)
    (entry,) = cache.iterdir()
    stored = onnx.load(entry / "graph.onnx", load_external_data=False).graph
    shapes = {info.name: [d.dim_param for d in info.type.tensor_type.shape.dim] for info in stored.value_info}
    sums = [node for node in stored.node if node.domain == "com.microsoft.nchwc" and len(node.input) == 4]
    if not sums:
        pytest.skip("ONNX Runtime has no layout of its own for this processor")
    assert all(shapes[node.input[3]] == shapes[node.output[0]] for node in sums)
    assert all(shape[0] == "batch" for shape in shapes.values())
    assert 1 < len({tuple(shape) for shape in shapes.values()}) < len(sums)  # a block's shape is not another's


def test_nothing_is_named_on_a_canvas_of_fixed_size(small_onnx: Path, cache: Path) -> None:
    with OnnxRuntimeRunner(small_onnx, "cpu", store=True):
        (entry,) = cache.iterdir()
    stored = onnx.load(entry / "graph.onnx", load_external_data=False).graph
    assert not any("shape" in d.dim_param for i in stored.value_info for d in i.type.tensor_type.shape.dim)


def test_processes_that_start_together_share_one_whole_entry(fake_onnx: FakeOnnx, cache: Path) -> None:
    path = fake_onnx()
    code = (
        "from blu_export.runtime import RunnerOptions, load_runner\n"
        f"load_runner({str(path)!r}, RunnerOptions('onnxruntime'))"
    )
    started = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    (entry,) = cache.iterdir()
    assert (entry / "graph.onnx").is_file()


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "older", "oldest")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights.bin").write_bytes(bytes(100))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    keep_newest(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "older"]
    assert BYTES_ALLOWED > 2**30
