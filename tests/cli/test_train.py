"""``blu train``: what it refuses before any work is done."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from shapes import SIDE, shapes, tiny_model, tiny_spec, write_coco

from blu_export.cli.main import main
from blu_export.cli.train import parse_canvas
from blu_export.cli.train_inputs import make_spec, open_additions, open_data
from blu_export.cli.train_progress import TrainProgress, duration
from blu_export.data.load import load_dataset
from blu_export.errors import DatasetError, UsageError
from blu_export.model.weights import read_weights, save_weights
from blu_export.rle import encode_rle
from blu_export.train.config import MODEL_FIELDS, DataConfig, RunConfig


def blu_train(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Its exit code, and what it said."""
    with pytest.raises(SystemExit) as exit_:
        main(["train", *arguments])
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no data set to train on"),
        (["--resume"], 2, "blu train --resume --out FOLDER"),
        (["--resume", "--out", "x", "--batch", "3"], 2, "train.batch cannot change"),
        (["--resume", "--out", "x", "--set", "train.seed=3"], 2, "train.seed cannot change"),
        (["--resume", "--out", "x", "--config", "y"], 2, "--config cannot change"),
        (["--resume", "--out", "absent", "--epochs", "3"], 2, "There is no run in absent."),
        (["--resume", "--out", "absent"], 2, "There is no run in absent."),
        (["--config", "absent.toml"], 2, "absent.toml cannot be read: No such file or directory."),
        (["--dataset", "absent"], 3, "There is no absent."),
        (["--dataset", "x", "--canvas", "500"], 2, "multiples of 64"),
        (["--dataset", "x", "--canvas", "big"], 2, "'big' is not a canvas"),
        (["--dataset", "x", "--layers", "tail"], 2, "'tail'"),
        (["--dataset", "x", "--distribute", "all"], 2, "none, mirrored, workers"),
        (["--dataset", "x", "--set", "model.depth=3"], 2, "no setting model.depth"),
        (["--dataset", "x", "--set", "model.class_names=a,b"], 2, "no setting model.class_names"),
    ],
)
def test_refusals(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, said = blu_train(capsys, *arguments)
    assert (found, message in said) == (code, True), said
    assert not list(tmp_path.iterdir())


def test_more_photos_cutouts_and_backgrounds(tmp_path: Path) -> None:
    data = write_coco(shapes(2), tmp_path / "data")
    more = write_coco(shapes(3, seed=1), tmp_path / "more")
    mask = encode_rle(np.ones((SIDE, SIDE), bool), (0, 0, SIDE, SIDE), (SIDE, SIDE))
    (tmp_path / "cutouts.json").write_text(json.dumps({"1.png": mask}))
    additions = DataConfig(more=(str(more),), cutouts=str(tmp_path / "cutouts.json"), backgrounds=str(data))
    photos, backgrounds = open_additions(additions, load_dataset(data, "train"))
    assert (len(photos), photos.cutouts()) == (5, [1, 3])
    assert backgrounds is not None and len(backgrounds) == 2
    assert photos.load_image(4).shape == (SIDE, SIDE, 3)
    other = load_dataset(data, "train")
    with pytest.raises(DatasetError, match="other classes"):
        open_additions(additions, replace(other, class_names=("BG", "x", "y", "z")))
    photos, backgrounds = open_additions(DataConfig(), other)
    assert (photos, backgrounds) == (other, None)


def test_only_the_training_set_as_a_whole_says_which_classes_have_no_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(name: str, *categories: int) -> str:
        path = write_coco(shapes(12, seed=len(name)), tmp_path / name)
        content = json.loads(path.read_text())
        content["annotations"] = [each for each in content["annotations"] if each["category_id"] in categories]
        path.write_text(json.dumps(content))
        return str(path)

    first, rest, part = write("first", 1, 2), write("rest", 3), write("part", 1)
    caplog.set_level("INFO", "blu_export")

    def said(data: DataConfig) -> str:
        caplog.clear()
        photos, _ = open_data(data)
        open_additions(data, photos)
        return caplog.text

    assert "classes without objects are left out: triangle" in said(DataConfig(train=first))
    assert said(DataConfig(train=first, val=part)).count("classes without") == 1
    assert "nothing to learn" not in said(DataConfig(train=first, val=part, more=(rest,), backgrounds=part))
    assert "nothing to learn of the class triangle" in said(DataConfig(train=first, more=(part,)))


@pytest.mark.parametrize(
    ("weights", "code", "message"),
    [
        ("coco", 2, "no mask_rcnn_coco.h5 in this folder. Download https://"),
        ("last", 2, "no finished run under runs"),
        ("absent.h5", 2, "no weights at absent.h5"),
    ],
)
def test_absent_weights_leave_no_run(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: str,
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_coco(shapes(2), tmp_path / "data")
    found, said = blu_train(capsys, "--dataset", str(data), "--weights", weights)
    assert (found, message in said) == (code, True), said
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_lines_within_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    with TrainProgress(epochs=2, steps=3, batch=4, seconds=0) as watch:
        for number in range(6):
            watch(number, float(number))
    lines = capsys.readouterr().err.splitlines()
    # None after the last step: the line of the whole epoch follows there.
    starts = ["epoch 1/2  step 1/3  loss 0.000", "epoch 1/2  step 2/3  loss 0.500", "epoch 2/2  step 1/3  loss 3.000",
              "epoch 2/2  step 2/3  loss 3.500"]  # fmt: skip
    assert [line[: len(start)] for line, start in zip(lines, starts, strict=True)] == starts
    assert "photos/s" not in lines[0]  # one step says nothing: it includes the compilation
    assert lines[1].endswith(" left") and "photos/s" in lines[1]


def test_duration() -> None:
    assert [duration(s) for s in (4.4, 89, 720, 3600 * 3 + 290)] == ["4 s", "89 s", "12 min", "3 h 05 min"]


def test_canvas() -> None:
    assert parse_canvas("512") == [512, 512]
    assert parse_canvas("384x256") == [384, 256]


def test_a_model_to_start_from_gives_the_spec(tmp_path: Path) -> None:
    path = tmp_path / "shapes.h5"
    save_weights(tiny_model(), path)
    run = RunConfig.read(None, [f"weights={path}", "model.rpn_nms_threshold=0.5"])
    spec = make_spec(run, shapes(1))
    assert spec.class_names == shapes(1).class_names
    assert spec.top_down_pyramid_size == tiny_spec().top_down_pyramid_size
    assert spec.rpn_nms_threshold == 0.5
    assert not spec.provenance


@pytest.mark.parametrize("index", [0, 1])
def test_every_worker_refuses_a_folder_with_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int
) -> None:
    cluster = {"worker": ["127.0.0.1:1", "127.0.0.1:2"]}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}}))
    (tmp_path / "config.toml").touch()
    code, said = blu_train(capsys, "--dataset", "x", "--distribute", "workers", "--out", str(tmp_path))
    assert (code, "There is a run in" in said) == (2, True), said


def test_a_run_goes_on_without_the_weights_it_began_with(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write_coco(shapes(2), tmp_path / "data")
    begun = Path("runs", "old", "best.h5")
    begun.parent.mkdir(parents=True)
    save_weights(tiny_model(), begun)
    options = ["--dataset", str(data), "--weights", "last", "--batch", "2", "--steps", "1", "--epochs", "1"]
    options += ["--layers", "heads", "--set", "train.targets.proposals=50", "--set", "train.targets.rois_per_image=24"]
    options += ["--set", "model.image_resize_mode=square", "--set", "model.rpn_nms_threshold=0.6"]
    code, said = blu_train(capsys, *options, "--out", "run")
    assert (code, f"layers from {begun}" in said) == (0, True), said
    first = read_weights("run/final.h5")
    run = RunConfig.read(Path("run", "config.toml"))
    assert (run.weights, set(run.model)) == (str(begun), set(MODEL_FIELDS))

    begun.unlink()
    newer = Path("runs", "newer", "best.h5")
    newer.parent.mkdir()
    save_weights(tiny_model(top_down_pyramid_size=16), newer)
    code, said = blu_train(capsys, "--resume", "--out", "run")
    assert (code, "resuming after epoch 1 of 1" in said) == (0, True), said
    resumed = read_weights("run/final.h5")
    assert resumed.spec.replace(provenance={}) == first.spec.replace(provenance={})
    assert resumed.spec.replace(provenance={}) == tiny_spec(rpn_nms_threshold=0.6)

    # A run without a checkpoint has nothing but the weights to begin with.
    for path in Path("run", "checkpoints").iterdir():
        path.unlink()
    code, said = blu_train(capsys, "--resume", "--out", "run")
    assert (code, f"no weights at {begun}" in said) == (2, True), said


def test_a_config_class_gives_the_settings_of_the_model(tmp_path: Path) -> None:
    from blu_export.cli.train import _options_of

    path = tmp_path / "hats.py"
    path.write_text(
        "class HatConfig(Config):\n    IMAGE_MAX_DIM = 2 * 128\n    LEARNING_RATE = 0.1\n"
        "    IMAGE_RESIZE_MODE = 'crop'\n    RPN_ANCHOR_SCALES = (8, 16, 32, 64, 128)\n"
    )
    assert _options_of(path) == {"model.image_max_dim": 256, "model.rpn_anchor_scales": [8, 16, 32, 64, 128]}
    path.write_text("class HatConfig(Config):\n    IMAGE_MAX_DIM = size()\n")
    with pytest.raises(UsageError, match="line 2: IMAGE_MAX_DIM"):
        _options_of(path)
