"""A batch spread over devices or processes has the losses of the same batch on one device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blu_export.errors import UsageError
from blu_export.train.config import LOSSES

WORKER = Path(__file__).parents[1] / "support" / "train_worker.py"
ROOT = Path(__file__).parents[2]


class Started:
    """A worker process."""

    def __init__(self, kind: str, saved: Path, **environment: str) -> None:
        self.saved = saved
        env = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"} | environment
        command = [sys.executable, str(WORKER), kind, str(saved)]
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result(self) -> dict[str, Any]:
        out, err = self.process.communicate(timeout=500)
        assert self.process.returncode == 0, err[-2000:]
        printed: dict[str, Any] = json.loads(out.splitlines()[-1])
        with np.load(self.saved) as arrays:
            return printed | {"state": [arrays[name] for name in arrays.files]}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return Started("none", tmp_path_factory.mktemp("alone") / "state.npz").result()


LOSS_TOLERANCE = 1e-4
"""Losses are continuous, and say whether examples are counted over all devices."""
GRADIENT_TOLERANCE = 0.01
"""Of each tensor's length. A gradient jumps where rounding moves a ReLU across its kink: where that is one
unit in n, by about 1 / sqrt(n). A device too many or too few in a sum is a factor of two."""


def same_step(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same losses and gradient, and afterwards the same weights, momenta and averages.

    Every later step follows from that state alone.
    """
    for name in (*LOSSES, "loss"):
        assert found["row"][name] == pytest.approx(expected["row"][name], rel=LOSS_TOLERANCE), name
    assert found["row"]["norm"] == pytest.approx(expected["row"]["norm"], rel=GRADIENT_TOLERANCE)
    assert expected["row"]["norm"] > 1  # so it was clipped, by its length over all devices
    pairs = list(zip(found["state"], expected["state"], strict=True))
    assert np.mean([np.linalg.norm(b) > 0 for _, b in pairs]) > 0.8
    for a, b in pairs:
        assert a.shape == b.shape
        assert np.linalg.norm(a - b) <= GRADIENT_TOLERANCE * np.linalg.norm(b) + 1e-8


def test_two_devices(alone: dict[str, Any], tmp_path: Path) -> None:
    both = Started("mirrored", tmp_path / "state.npz").result()
    assert both["replicas"] == 2
    same_step(both, alone)


def two_workers() -> list[str]:
    """TF_CONFIG of each of two processes on this machine."""
    with socket.socket() as first, socket.socket() as second:
        for held in (first, second):
            held.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{held.getsockname()[1]}" for held in (first, second)]
    cluster = {"worker": workers}
    return [json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}) for index in (0, 1)]


@pytest.mark.long  # two devices of one process are compared each time
def test_two_processes(alone: dict[str, Any], tmp_path: Path) -> None:
    started = [
        Started("workers", tmp_path / f"state-{index}.npz", TF_CONFIG=task) for index, task in enumerate(two_workers())
    ]
    try:
        results = [each.result() for each in started]
    finally:
        for each in started:
            each.process.kill()
    assert [r["replicas"] for r in results] == [2, 2]
    assert [r["chief"] for r in results] == [True, False]
    for found in results:
        same_step(found, alone)


CHECK_EPOCH = """
import sys
from blu_export.errors import UsageError
from blu_export.train.distribute import check_same_epoch, make_strategy
strategy = make_strategy("workers")
check_same_epoch(strategy, 3)
try:
    check_same_epoch(strategy, int(sys.argv[1]))
except UsageError as error:
    print(error)
"""


def test_workers_with_different_checkpoints_all_refuse() -> None:
    started = [
        subprocess.Popen(
            [sys.executable, "-c", CHECK_EPOCH, epoch],
            env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CONFIG": task},
            stdout=subprocess.PIPE,
            text=True,
        )
        for task, epoch in zip(two_workers(), ("3", "2"), strict=True)
    ]
    try:
        said = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert ["different epochs: 3, 2." in text for text in said] == [True, True], said
    assert [process.returncode for process in started] == [0, 0]


def test_one_device_agrees_with_itself() -> None:
    from blu_export.train.distribute import check_same_epoch, make_strategy

    check_same_epoch(make_strategy("none"), 3)


@pytest.mark.parametrize(
    "text", ["", "{", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}']
)
def test_a_wrong_tf_config_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from blu_export.train.distribute import make_strategy

    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(UsageError, match="TF_CONFIG"):
        make_strategy("workers")


def test_unknown_distribution() -> None:
    from blu_export.train.distribute import make_strategy

    with pytest.raises(UsageError, match="none, mirrored, workers"):
        make_strategy("many")
