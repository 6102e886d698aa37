"""Whole runs: learning, stopping, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shapes import shapes, tiny_config, tiny_model, tiny_spec, write_coco

from blu_export.errors import ModelFileError
from blu_export.model.weights import read_weights
from blu_export.train.run_folder import RunFolder
from blu_export.train.validate import Validator

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("steps", "loss", "mask_ap", "box_ap"),
    [(12, 0.6, 0.0, 0.0), pytest.param(60, 0.25, 0.9, 0.85, marks=pytest.mark.long)],
)
def test_learns_a_tiny_data_set_by_heart(
    tmp_path: Path, steps: int, loss: float, mask_ap: float, box_ap: float
) -> None:
    """``loss``: at most this share of the first epoch's is left in the last one; the AP is at least that."""
    from blu_export.train.fit import Trainer

    dataset = shapes(4)
    # Masks of 28 x 28 cannot reach IoU 0.95 on round things, however well they are learnt.
    fine = {"mask_pool_size": 28, "mask_shape": (56, 56), "fpn_classif_fc_layers_size": 256}
    config = tiny_config(
        batch=4, epochs=4, steps_per_epoch=steps, optimizer="adamw", learning_rate=2e-3, weight_decay=0.0, ema=0.95,
        validate_every=2,
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    trainer = Trainer(tiny_spec(**fine), tiny_model(**fine), dataset, config, folder, Validator(dataset))
    history = trainer.run()
    assert history[-1]["loss"] < loss * history[0]["loss"]
    assert history[-1]["mask_ap"] >= mask_ap
    assert history[-1]["box_ap"] >= box_ap

    files = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    assert {"best.h5", "final.h5", "history.csv", "curves.png", "pictures/epoch-2.jpg", "pictures/epoch-4.jpg"} <= files
    assert {"checkpoints/epoch-3.npz", "checkpoints/epoch-4.npz"} <= files
    assert "checkpoints/epoch-1.npz" not in files  # only the newest are kept
    assert any(name.startswith("tensorboard/events") for name in files)
    assert read_weights(folder.path / "best.h5").spec.class_names == dataset.class_names
    with open(folder.path / "history.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["epoch"]) for row in rows] == [1, 2, 3, 4]
    assert [row["mask_ap"] == "" for row in rows] == [True, False, True, False]
    assert float(rows[3]["mask_ap"]) == history[3]["mask_ap"]


def blu_train(*arguments: str) -> subprocess.Popen[str]:
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "blu_export", "train", *arguments], env=env, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """What a run said, once it has ended well."""
    _, said = process.communicate(timeout=500)
    assert process.returncode == 0, said[-2000:]
    return said


def losses(folder: Path) -> list[dict[str, str]]:
    with open(folder / "history.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "images_per_second"} for row in csv.DictReader(file)]


@pytest.mark.long  # test_never_lose compares a resumed run each time
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    annotations = write_coco(shapes(6), tmp_path / "data")
    spec = json.loads(tiny_spec().to_json())
    fields = ("image_min_dim", "image_max_dim", "backbone", "top_down_pyramid_size", "rpn_channels", "mask_channels",
              "fpn_classif_fc_layers_size", "post_nms_rois_inference", "pre_nms_limit")  # fmt: skip
    settings = [f"model.{name}={spec[name]}" for name in fields] + [
        "train.optimizer=adamw", "train.ema=0.9", "train.warmup_steps=4", "train.targets.proposals=50",
        "train.targets.rois_per_image=24", "train.layers=heads:1,5+:2",
    ]  # fmt: skip
    options = ["--dataset", str(annotations), "--weights", "none", "--batch", "2", "--steps", "3", "--lr", "0.001"]
    options += [word for setting in settings for word in ("--set", setting)]

    with blu_train(*options, "--out", str(tmp_path / "whole")) as whole:
        # Stopped as soon as an epoch is said to be done, in the middle of the second stage: its folder holds what
        # a kill would leave. The run itself then goes on to its end.
        assert whole.stderr is not None
        for line in whole.stderr:
            if line.startswith("epoch 2/3"):
                break
        whole.send_signal(signal.SIGSTOP)
        try:
            os.waitid(os.P_PID, whole.pid, os.WSTOPPED)
            shutil.copytree(tmp_path / "whole", tmp_path / "killed")
        finally:
            whole.send_signal(signal.SIGCONT)
        finish(whole)
    assert not (tmp_path / "killed" / "final.h5").exists()
    assert "resuming after epoch" in finish(blu_train("--resume", "--out", str(tmp_path / "killed")))

    # To the last bit: see make_deterministic.
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert len(losses(tmp_path / "whole")) == 3
    resumed = read_weights(tmp_path / "killed" / "final.h5").layers
    for name, tensors in read_weights(tmp_path / "whole" / "final.h5").layers.items():
        for (_, a), (_, b) in zip(tensors, resumed[name], strict=True):
            np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    from blu_export.train.checkpoint import checkpoints, load_checkpoint
    from blu_export.train.fit import Trainer

    trainer = Trainer(tiny_spec(), tiny_model(), shapes(2), tiny_config())
    (tmp_path / "checkpoints").mkdir()
    path = tmp_path / "checkpoints" / "epoch-3.npz"
    path.write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "checkpoints" / ".epoch-4.tmp.npz").touch()  # a write that was cut off
    assert checkpoints(tmp_path) == [path]
    with pytest.raises(ModelFileError, match=r"epoch-3\.npz does not fit"):
        load_checkpoint(path, trainer.model, trainer.step.updater)
    assert not trainer.resume(tmp_path / "elsewhere")
