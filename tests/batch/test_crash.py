"""Workers and drivers killed in the middle: no photo is lost and none is there twice."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from batch_jobs import PATIENCE, check_levels, run, start
from fake_runner import write_model

from blu_export.batch.plan import Shard
from blu_export.batch.process import Job, Worker
from blu_export.files import sha256_of

LEVELS = list(range(10, 250, 10))


@pytest.fixture
def slow_model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "slow.onnx", seconds=0.02)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task")
    if not tasks.is_dir():
        pytest.skip("needs /proc")
    return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]


def wait_for_lines(process: subprocess.Popen[str], count: int) -> None:
    assert process.stdout is not None
    for _ in range(count):
        assert process.stdout.readline() == "photo\n"


def test_killed_workers_cost_no_photo(photos: Callable[..., Path], slow_model: Path, tmp_path: Path) -> None:
    folder, sink = photos(*LEVELS), tmp_path / "found"
    process = start(source=folder, sink=sink, model=slow_model, workers=2, shard_size=6, batch=2)
    for _ in range(2):
        wait_for_lines(process, 4)
        os.kill(children(process.pid)[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert json.loads(out.splitlines()[-1])["failed"] == 0
    check_levels(sink, folder, LEVELS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_driver_is_gone_on_from(
    photos: Callable[..., Path], slow_model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder, sink = photos(*LEVELS), tmp_path / "found"
    process = start(source=folder, sink=sink, model=slow_model, shard_size=4)
    wait_for_lines(process, 10)
    (worker,) = children(process.pid)
    process.send_signal(number)
    process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    wait_for_end(worker)
    finished = len(list(sink.glob("part-*.parquet")))
    assert 2 <= finished < 6
    report = run(source=folder, sink=sink, model=slow_model)
    assert report.ran == len(LEVELS) - 4 * finished
    check_levels(sink, folder, LEVELS)
    assert not list(sink.glob(".*"))


def test_a_worker_ends_with_a_driver_that_dies_with_a_word_unread(
    photos: Callable[..., Path], slow_model: Path, tmp_path: Path
) -> None:
    folder, sink = photos(*LEVELS), tmp_path / "found"
    process = start(source=folder, sink=sink, model=slow_model, shard_size=12)
    wait_for_lines(process, 2)
    (worker,) = children(process.pid)
    handle = os.pidfd_open(worker)
    try:
        process.send_signal(signal.SIGSTOP)
        while not list(sink.glob("part-*.parquet")):  # then the worker has said much that the driver never reads
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)
        assert select.select([handle], [], [], PATIENCE)[0], "the worker outlives its driver"
    finally:
        os.close(handle)


def wait_for_end(pid: int) -> None:
    """Until a process that is not ours is over; it must end by itself."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([handle], [], [], PATIENCE)[0], "the worker outlives its driver"
    finally:
        os.close(handle)


def test_two_workers_on_one_shard_write_it_once(photos: Callable[..., Path], slow_model: Path, tmp_path: Path) -> None:
    """A worker that was taken for lost may still finish: on a cluster that happens."""
    folder, sink = photos(*LEVELS[:4]), tmp_path / "found"
    run(source=folder, sink=sink, model=slow_model)
    job = Job(str(slow_model), sha256_of(slow_model), str(sink), loader="fake_runner:load")
    with Worker(job) as late:
        late.run(Shard(0, tuple(str(path) for path in sorted(folder.iterdir()))))
    check_levels(sink, folder, LEVELS[:4])
