"""Which settings a resumed run takes, and how they are recorded."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from blu_export.errors import UsageError
from blu_export.train.config import RunConfig, TrainConfig
from blu_export.train.resume import resumed_run
from blu_export.train.toml import write_toml


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunConfig(train=TrainConfig(epochs=30, learning_rate=0.1, batch=4))
    write_toml(tmp_path / "config.toml", dataclasses.asdict(run))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "epoch-10.npz").touch()
    return tmp_path


def test_nothing_given_nothing_changed(folder: Path) -> None:
    assert resumed_run(folder, {"train.epochs": None}, []) == RunConfig.read(folder / "config.toml")


def test_changes_are_recorded(folder: Path) -> None:
    run = resumed_run(folder, {"train.learning_rate": 0.01, "train.epochs": 20}, ["train.unreadable=0.5"])
    assert run.train.layers == "all:10@0.1,all:10@0.01"
    assert (run.train.total_epochs, run.train.learning_rate, run.train.unreadable) == (20, 0.01, 0.5)
    assert set(run.changes) == {"10"}
    for text in ("learning_rate 0.1 -> 0.01", "layers all -> all:10@0.1,all:10@0.01", "unreadable 0.01 -> 0.5"):
        assert text in run.changes["10"]

    # It reads back, and the same command again changes nothing more.
    write_toml(folder / "config.toml", dataclasses.asdict(run))
    assert RunConfig.read(folder / "config.toml") == run
    assert resumed_run(folder, {"train.learning_rate": 0.01, "train.epochs": 20}, []) == run
    (folder / "checkpoints" / "epoch-20.npz").touch()
    later = resumed_run(folder, {"train.epochs": 25}, [])
    assert later.train.layers == "all:10@0.1,all:15@0.01"
    assert set(later.changes) == {"10", "20"}


def test_what_belongs_to_the_whole_run_cannot_change(folder: Path) -> None:
    for options, settings, name in (
        ({"train.batch": 2}, [], "train.batch"),
        ({}, ["train.seed=1"], "train.seed"),
        ({"data.train": "x"}, [], "data.train"),
    ):
        with pytest.raises(UsageError, match=f"{name} cannot change"):
            resumed_run(folder, options, settings)
    with pytest.raises(UsageError, match="after epoch 10 already"):
        resumed_run(folder, {"train.epochs": 10}, [])
