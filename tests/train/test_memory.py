"""Memory: what is free, what a step needs, and settings that fit."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from blu_export.errors import UsageError
from blu_export.spec import ModelSpec
from blu_export.train.config import TrainConfig

if TYPE_CHECKING:
    from blu_export.model.mask_rcnn import MaskRCNN

GB = 1e9


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    from blu_export.model.mask_rcnn import MaskRCNN

    return MaskRCNN(ModelSpec(class_names=("BG", "a"), backbone="resnet50", image_resize_mode="none"))


def test_the_least_of_machine_and_container_is_free(tmp_path: Path) -> None:
    from blu_export.train.memory import host_memory

    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemAvailable:      80 kB\n")
    assert host_memory(meminfo, tmp_path / "none") == 80 * 1024
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.max").write_text("50000\n")
    (group / "memory.current").write_text("20000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert host_memory(meminfo, group) == 35000  # pages of files can be dropped
    (group / "memory.max").write_text("max\n")
    assert host_memory(meminfo, group) == 80 * 1024
    assert host_memory(tmp_path / "absent", tmp_path / "none") == math.inf


def test_need_grows_with_batch_canvas_and_layers(model: MaskRCNN) -> None:
    from blu_export.train.memory import step_memory

    config = TrainConfig(batch=4)
    need = step_memory(model, (512, 512), config)
    assert need > step_memory(model, (512, 512), replace(config, batch=2)) > 1 * GB
    assert need > step_memory(model, (512, 256), config)
    assert need > step_memory(model, (512, 512), replace(config, layers="heads"))
    assert need == step_memory(
        model, (512, 512), replace(config, layers="heads:1,all:2")
    )  # the most expensive stage counts
    assert step_memory(model, (512, 512), replace(config, accumulate=4)) == step_memory(
        model, (512, 512), replace(config, batch=1)
    )
    assert step_memory(model, (512, 512), replace(config, optimizer="adamw", ema=0.9)) > need


def test_what_does_not_fit_is_refused_with_settings_that_do(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.train import memory
    from blu_export.train.memory import fit_memory, fits, step_memory

    config = TrainConfig(batch=8)
    one = step_memory(model, (1024, 768), replace(config, batch=1))
    for free in (1.5 * one, 0.9 * one):
        monkeypatch.setattr(memory, "free_memory", lambda replicas, free=free: free)
        with pytest.raises(UsageError, match="GB of memory") as error:
            fit_memory(model, (1024, 768), config)
        found = re.search(r"--batch (\d+) --canvas (\d+)x(\d+)$", str(error.value))
        assert found is not None, error.value
        batch, height, width = map(int, found.groups())
        assert fits(model, (height, width), replace(config, batch=batch), 1, free)
        assert fit_memory(model, (height, width), replace(config, batch=batch)).batch == batch
        assert ((height, width) == (1024, 768)) == (free > one)
        assert height / width == pytest.approx(4 / 3, abs=0.2)
    monkeypatch.setattr(memory, "free_memory", lambda replicas: 1e6)
    with pytest.raises(UsageError, match="another machine"):
        fit_memory(model, (1024, 768), config)


def test_the_default_batch_follows_the_machine(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.train import memory
    from blu_export.train.memory import fit_memory, step_memory

    canvas = (512, 512)
    for batch in (1, 2, 4):
        need = step_memory(model, canvas, TrainConfig(batch=batch))
        monkeypatch.setattr(memory, "free_memory", lambda replicas, need=need: 1.05 * need / memory.SAFE_SHARE)
        assert fit_memory(model, canvas, TrainConfig()).batch == batch
    monkeypatch.setattr(memory, "free_memory", lambda replicas: math.inf)
    assert fit_memory(model, canvas, TrainConfig(), replicas=3).batch == 3
    assert fit_memory(model, canvas, TrainConfig(), replicas=8).batch == 8
