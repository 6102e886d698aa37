"""Logs: serving never waits for the reader of stderr, and what repeats is told once."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_runner import write_model
from loopback import HERE, PATIENCE, Running, gray, metric

from blu_export.serve.logs import (
    MAX_LINES,
    MAX_WAITING,
    JsonFormatter,
    OncePerSecond,
    ProcessLines,
    Writer,
    dropped,
    warn_once,
)


def test_a_full_pipe_costs_lines_and_no_time() -> None:
    read_end, write_end = os.pipe()
    writer = Writer(write_end)
    lines = [f"{index} " + "x" * 1000 for index in range(2 * MAX_WAITING // 1000)]
    for line in lines:
        writer.put(line)
    assert not writer.flush(0.01)
    assert len(lines) / 3 < writer.dropped < len(lines) * 2 / 3
    with open(read_end, encoding="utf-8") as reader:
        kept = [reader.readline().rstrip("\n") for _ in range(len(lines) - writer.dropped)]
        # Whole, in order, each once. The thread may have made room for a late one after others were dropped.
        indices = [int(line.split()[0]) for line in kept]
        assert kept == [lines[index] for index in indices] and indices == sorted(set(indices))
        assert writer.flush(PATIENCE)
        writer.put("later")
        assert reader.readline() == "later\n"
    os.close(write_end)


def test_a_pipe_that_was_closed_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    writer = Writer(write_end)
    writer.put("no one is there")
    assert writer.flush(PATIENCE)
    os.close(write_end)


def test_a_server_whose_log_is_not_read_goes_on(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    model = str(write_model(tmp_path / "fake.onnx"))
    given = {"model": model, "port": 0, "notice": 0.0, "loader": "fake_runner:load_noisy"}
    process = subprocess.Popen(
        [sys.executable, HERE / "serve_fake.py", json.dumps(given)],
        stderr=write_end,
        env={**os.environ, "PYTHONPATH": path},
    )
    os.close(write_end)
    with open(read_end, encoding="utf-8") as log:
        seen = [json.loads(log.readline())]
        while seen[-1]["event"] != "listening":
            seen.append(json.loads(log.readline()))
        line = seen[-1]
        told = [each["text"] for each in seen if each["event"] == "stderr" and each["source"] == "worker"]
        assert told[0] == f"line 0 {'x' * 100}"
        server = Running(process, tmp_path, line["port"])
        with server.client() as client:
            while not metric(client, "blu_log_lines_dropped_total"):
                for _ in range(100):
                    assert client.get(f"/{'nothing' * 2000}").status_code == 404
            for level in range(3):  # the worker's lines have nowhere to go
                assert client.post("/v1/predict", content=gray(level)).status_code == 200
        assert server.stop() == 0


def test_lines_of_a_process_beyond_what_is_told_are_counted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blu_export.serve.logs.time.monotonic", iter([5.0] * 150 + [6.0] * 50).__next__)
    lines = ProcessLines("decoder")
    before = dropped()
    for number in range(200):
        lines(b"\xff %d" % number)
    lines(b"  ")
    assert dropped() - before == 150 - MAX_LINES
    told = [record.text for record in caplog.records]  # type: ignore[attr-defined]
    assert told == [f"\\xff {number}" for number in [*range(MAX_LINES), *range(150, 200)]]


def records(count: int, event: str, created: float) -> Iterator[logging.LogRecord]:
    for _ in range(count):
        record = logging.makeLogRecord({"name": "n", "msg": event, "levelno": logging.WARNING})
        record.created = created
        yield record


def test_warnings_of_one_kind_are_told_once_a_second() -> None:
    once = OncePerSecond()
    told = [
        record
        for created, event in ((0.0, "a"), (0.5, "a"), (0.5, "b"), (1.5, "a"), (3.0, "a"))
        for record in records(10, event, created)
        if once.filter(record)
    ]
    assert [(each.created, each.msg, getattr(each, "repeated", 0)) for each in told] == [
        (0.0, "a", 0),
        (0.5, "b", 0),
        (1.5, "a", 19),
        (3.0, "a", 9),
    ]
    info = [logging.makeLogRecord({"msg": "request", "levelno": logging.INFO}) for _ in range(3)]
    assert all(once.filter(record) for record in info)


def test_warnings_of_a_library_are_told_once_a_place(caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warn_once()
        for number in range(5):
            warnings.warn(f"Corrupt EXIF data. Expecting to read {number} bytes", stacklevel=1)
        warnings.warn("another place", RuntimeWarning, stacklevel=1)
    assert [record.text for record in caplog.records] == [  # type: ignore[attr-defined]
        "Corrupt EXIF data. Expecting to read 0 bytes",
        "another place",
    ]
    line = json.loads(JsonFormatter().format(caplog.records[1]))
    assert (line["event"], line["kind"]) == ("warning", "RuntimeWarning")
