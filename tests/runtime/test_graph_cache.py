"""Optimized graphs on disk: the same answers, and no harm from damage, races or a full cache."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blu_export.cache import cache_folder, keep_newest
from blu_export.runtime import RunnerOptions, load_runner
from blu_export.runtime.graph_cache import BYTES_ALLOWED

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
