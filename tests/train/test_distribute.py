"""A batch spread over devices or processes has the losses of the same batch on one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blu_export.errors import UsageError
from blu_export.train.distribute import make_strategy

WORKER = Path(__file__).with_name("worker.py")
ROOT = Path(__file__).parents[2]


def start(kind: str, **environment: str) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"} | environment
    return subprocess.Popen(
        [sys.executable, str(WORKER), kind], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def result(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, err[-2000:]
    printed: dict[str, Any] = json.loads(out.splitlines()[-1])
    return printed


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return result(start("none"))


def same_losses(found: dict[str, Any], expected: dict[str, Any]) -> None:
    # Rounding differs with the order of the sums. Before the first update it stays rounding; after it, it
    # may move a ROI across a threshold.
    for tolerance, row, other in zip((1e-5, 1e-2), found["history"], expected["history"], strict=True):
        for name in set(row) - {"images_per_second"}:
            assert row[name] == pytest.approx(other[name], rel=tolerance), name
    assert found["moved"] == pytest.approx(expected["moved"], rel=1e-3)


@pytest.mark.slow
def test_two_devices(alone: dict[str, Any]) -> None:
    both = result(start("mirrored"))
    assert both["replicas"] == 2
    same_losses(both, alone)


@pytest.mark.slow
def test_two_processes(alone: dict[str, Any]) -> None:
    workers = []
    with socket.socket() as first, socket.socket() as second:
        for held in (first, second):
            held.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{held.getsockname()[1]}" for held in (first, second)]
    tasks = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}} for index in (0, 1)]
    processes = [start("workers", TF_CONFIG=json.dumps(task)) for task in tasks]
    try:
        results = [result(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [r["replicas"] for r in results] == [2, 2]
    assert [r["chief"] for r in results] == [True, False]
    for found in results:
        same_losses(found, alone)


@pytest.mark.parametrize(
    "text", ["", "{", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_a_wrong_tf_config_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match="TF_CONFIG"):
        make_strategy("workers")


def test_unknown_distribution() -> None:
    with pytest.raises(UsageError, match="none, mirrored, workers"):
        make_strategy("many")
