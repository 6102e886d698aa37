"""One driver at a time on a sink: in a folder, and in a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from batch_jobs import run
from fake_runner import write_model

from blu_export.batch import lock
from blu_export.batch.lock import LOCK_NAME, SinkLock
from blu_export.batch.sink import Sink
from blu_export.errors import UsageError

HOLDER = """
import sys
from blu_export.batch.lock import SinkLock
from blu_export.batch.sink import Sink
held = SinkLock(Sink(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_driver_is_locked_out(photos: Callable[..., Path], tmp_path: Path) -> None:
    folder, sink = photos(10, 20), tmp_path / "found"
    settings = {"source": folder, "sink": sink, "model": write_model(tmp_path / "m.onnx")}
    command = [sys.executable, "-c", HOLDER, str(sink)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="Another blu batch is at work"):
            run(**settings)
        other.send_signal(signal.SIGKILL)
    assert run(**settings).photos == 2  # what a killed one held is free
    assert run(**settings).ran == 0
    assert LOCK_NAME not in os.listdir(sink)


def test_a_job_that_cannot_begin_holds_nothing(photos: Callable[..., Path], tmp_path: Path) -> None:
    folder, sink = photos(10), tmp_path / "found"
    run(source=folder, sink=sink, model=write_model(tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match="another model"):
        run(source=folder, sink=sink, model=write_model(tmp_path / "other.onnx", shift=1.0))
    SinkLock(Sink(str(sink))).close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """A sink that is not a folder."""
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "SILENCE", 0.3)
    place = Sink("memory://lock-test/found")
    place.write("_anything", b"")
    yield place
    fsspec.filesystem("memory").rm("/lock-test", recursive=True)


def test_in_a_bucket_a_living_driver_shows_signs_of_life(bucket: Sink) -> None:
    first = SinkLock(bucket)
    with pytest.raises(UsageError, match="Another blu batch is at work"):
        SinkLock(bucket)
    first.close()
    SinkLock(bucket).close()
    assert LOCK_NAME not in bucket.names()


@pytest.mark.parametrize("content", [b'{"token": "x", "beat": 3}', b"\xff", b"[]"])
def test_in_a_bucket_a_dead_driver_is_followed(bucket: Sink, content: bytes) -> None:
    bucket.write(LOCK_NAME, content)
    next_one = SinkLock(bucket)
    next_one.close()


def test_in_a_bucket_one_of_two_that_begin_at_once_goes_on(bucket: Sink) -> None:
    started, refused = [], []

    def begin() -> None:
        try:
            started.append(SinkLock(bucket))
        except UsageError:
            refused.append(True)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in started:
        each.close()
    assert len(started) <= 1 and len(started) + len(refused) == 2
