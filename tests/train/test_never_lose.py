"""What must not cost a run its work: broken photos, a validation that fails, divergence; and going on afterwards."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_set import write_broken_set
from shapes import shapes, tiny_config, tiny_model, tiny_spec

from blu_export.data.load import load_dataset
from blu_export.errors import CheckFailedError, DatasetError
from blu_export.train.config import RunConfig
from blu_export.train.run_folder import LEFT_OUT, RunFolder
from blu_export.train.validate import Validator


@pytest.fixture
def deterministic() -> Iterator[None]:
    """As ``blu train`` has it: without it losses of a trunk that learns differ from run to run on a busy machine."""
    from tensorflow.python.framework.config import disable_op_determinism

    from blu_export.train.distribute import make_deterministic

    make_deterministic()
    yield
    disable_op_determinism()


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def loss_rows(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in history]


def test_a_set_with_broken_photos_trains_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from blu_export.train.fit import Trainer

    damaged = write_broken_set(tmp_path / "set", 24, val=6)
    photos, validation = (load_dataset(tmp_path / "set", part) for part in ("train", "val"))
    config = tiny_config(batch=4, epochs=2, learning_rate=1e-3, unreadable=0.3)
    validator = Validator(validation, unreadable=0.3)
    trainer = Trainer(tiny_spec(), tiny_model(), photos, config, RunFolder(tmp_path / "run"), validator)
    with caplog.at_level(logging.WARNING, "blu_export"):
        history = trainer.run()
    assert [row["epoch"] for row in history] == [1, 2]
    assert np.isfinite([row["mask_ap"] for row in history]).all()
    listed = {Path(row["photo"]).name: row["reason"] for row in rows_of(tmp_path / "run" / LEFT_OUT)}
    assert {name for name in damaged if name.startswith("val")} <= set(listed)
    assert {name for name in damaged if damaged[name] != "cannot be read"} <= set(listed)
    for name, reason in listed.items():
        assert damaged[name] in reason
    named = [record.message for record in caplog.records if record.name == "blu_export.data.photos"]
    assert len(named) == len(set(named)) == len(listed)
    # The model of the validations is traced once.
    assert trainer.averaged_model()._detect.experimental_get_tracing_count() == 1


def test_a_batch_of_which_nothing_can_be_read_stops_the_run(tmp_path: Path, eager: None) -> None:
    from blu_export.train.checkpoint import checkpoint_path, latest_checkpoint
    from blu_export.train.fit import Trainer

    write_broken_set(tmp_path / "set", 12)
    for path in (tmp_path / "set" / "images").iterdir():
        path.write_bytes(b"")
    photos = load_dataset(tmp_path / "set", "train")
    config = tiny_config(batch=2, epochs=1, unreadable=1.0)
    with pytest.raises(DatasetError, match="No photo of .* can be read"):
        Trainer(tiny_spec(), tiny_model(), photos, config).run()

    write_broken_set(tmp_path / "set", 12)
    readable = load_dataset(tmp_path / "set", "train")
    trainer = Trainer(tiny_spec(), tiny_model(), readable, config, RunFolder(tmp_path / "run"))
    order = trainer.make._order(0)
    for index in order[2:4]:  # those of the second step
        Path(readable.records[index].uri).write_bytes(b"")
    with pytest.raises(DatasetError, match="None of the 2 photos of a batch can be read"):
        trainer.run()
    assert latest_checkpoint(tmp_path / "run") == checkpoint_path(tmp_path / "run", 0)
    assert len(rows_of(tmp_path / "run" / LEFT_OUT)) >= 2


class Validation:
    """A stand-in whose values depend on the weights; it fails once where asked to."""

    def __init__(self, fail_at: int = -1) -> None:
        self.fail_at, self.calls = fail_at, 0

    def __call__(self, model: Any, picture: Path | None) -> dict[str, float]:
        self.calls += 1
        if self.calls == self.fail_at:
            raise DatasetError("The disk is gone.")
        kernel = model.learned_layers()["mrcnn_mask"].get_weights()[0]
        return {"mask_ap": float(np.abs(kernel).sum())}


def test_an_epoch_whose_validation_fails_is_not_lost(tmp_path: Path, deterministic: None, eager: None) -> None:
    from blu_export.train.checkpoint import checkpoint_path, latest_checkpoint
    from blu_export.train.fit import Trainer

    config = tiny_config(epochs=3, steps_per_epoch=2, learning_rate=1e-3, layers="heads:2,all:1", optimizer="adamw")

    def trainer(name: str, validation: Validation) -> Trainer:
        folder = RunFolder(tmp_path / name)
        return Trainer(tiny_spec(), tiny_model(), shapes(4), config, folder, validation)

    whole = trainer("whole", Validation()).run(validate_start=True)
    assert [row["epoch"] for row in whole] == [0, 1, 2, 3]
    assert set(whole[0]) == {"epoch", "mask_ap"}

    with pytest.raises(DatasetError, match="disk is gone"):
        trainer("cut", Validation(fail_at=3)).run(validate_start=True)
    assert latest_checkpoint(tmp_path / "cut") == checkpoint_path(tmp_path / "cut", 2)
    resumed = trainer("cut", Validation())
    assert resumed.resume(tmp_path / "cut")
    assert loss_rows(resumed.run()) == loss_rows(whole)
    assert [row["mask_ap"] for row in rows_of(tmp_path / "cut" / "history.csv")] == [
        str(row["mask_ap"]) for row in whole
    ]

    # The run is over; with more epochs it goes on.
    longer = config.changed(3, None, 5, None)
    assert longer.layers == "heads:2@0.001,all:3@0.001"
    again = Trainer(tiny_spec(), tiny_model(), shapes(4), longer, RunFolder(tmp_path / "cut"), Validation())
    assert again.resume(tmp_path / "cut", changed=True)
    moments = {name: variable.numpy() for name, variable in again.step.updater.variables.items()}
    assert int(moments["heads/0"]) == 6 and int(moments["stem/0"]) == 2  # steps of each part
    history = again.run()
    assert loss_rows(history[:4]) == loss_rows(whole)
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4, 5]


def test_divergence_leaves_a_sound_checkpoint_and_can_be_mended(tmp_path: Path) -> None:
    from blu_export.train.checkpoint import latest_checkpoint
    from blu_export.train.fit import Trainer

    config = tiny_config(epochs=2, steps_per_epoch=20, learning_rate=1e6, optimizer="sgd")
    trainer = Trainer(tiny_spec(), tiny_model(), shapes(4), config, RunFolder(tmp_path / "run"))
    with pytest.raises(CheckFailedError, match=r"diverged.* blu train --resume --out .*run --lr 1e\+05"):
        trainer.run()
    newest = latest_checkpoint(tmp_path / "run")
    assert newest is not None
    with np.load(newest) as arrays:
        assert all(np.isfinite(arrays[name]).all() for name in arrays.files)

    mended = config.changed(0, None, None, 1e-3)
    run = RunConfig(train=mended, changes={"0": "learning_rate 1e6 -> 0.001"})
    folder = RunFolder(tmp_path / "run")
    folder.save_config(run)
    again = Trainer(tiny_spec(), tiny_model(), shapes(4), replace(mended, steps_per_epoch=2), folder)
    assert again.resume(tmp_path / "run", changed=True)
    assert len(again.run()) == 2
    assert [row["change"] for row in rows_of(tmp_path / "run" / "history.csv")] == ["learning_rate 1e6 -> 0.001", ""]
    assert RunConfig.read(tmp_path / "run" / "config.toml") == run


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    from blu_export.train.checkpoint import checkpoint_path, latest_checkpoint
    from blu_export.train.fit import Trainer

    model = tiny_model()
    trainer = Trainer(tiny_spec(), model, shapes(2), tiny_config(epochs=1), RunFolder(tmp_path / "run"))
    trainer._save_checkpoint()
    layer = model.learned_layers()["mrcnn_mask"]
    layer.set_weights([np.full_like(w, np.inf) for w in layer.get_weights()])
    trainer.progress.epoch = 1
    with pytest.raises(CheckFailedError, match="a weight is not finite after epoch 1"):
        trainer._save_checkpoint()
    assert latest_checkpoint(tmp_path / "run") == checkpoint_path(tmp_path / "run", 0)
