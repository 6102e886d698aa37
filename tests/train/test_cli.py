"""``blu train``: what it refuses before any work is done."""

from __future__ import annotations

from pathlib import Path

import pytest
from shapes import shapes, tiny_model, tiny_spec, write_coco

from blu_export.cli.main import main
from blu_export.cli.train import make_spec, parse_canvas
from blu_export.cli.train_progress import TrainProgress, duration
from blu_export.errors import UsageError
from blu_export.model.weights import save_weights
from blu_export.train.config import RunConfig


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    with pytest.raises(SystemExit) as exit_:
        main(["train", *arguments])
    return int(exit_.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no data set to train on"),
        (["--resume"], 2, "blu train --resume --out FOLDER"),
        (["--resume", "--out", "x", "--epochs", "3"], 2, "settings it was started with"),
        (["--resume", "--out", "absent"], 2, "config.toml"),
        (["--dataset", "absent"], 3, "no data set with a part 'train'"),
        (["--dataset", "x", "--canvas", "500"], 2, "multiples of 64"),
        (["--dataset", "x", "--canvas", "big"], 2, "'big' is no canvas"),
        (["--dataset", "x", "--layers", "tail"], 2, "'tail'"),
        (["--dataset", "x", "--distribute", "all"], 2, "none, mirrored, workers"),
        (["--dataset", "x", "--set", "model.depth=3"], 3, "no data set"),
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
    found, said = refused(capsys, *arguments)
    assert (found, message in said) == (code, True), said
    assert not list(tmp_path.iterdir())


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
    found, said = refused(capsys, "--dataset", str(data), "--weights", weights)
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
    with pytest.raises(UsageError, match="no spec field depth"):
        make_spec(RunConfig.read(None, ["model.depth=3"]), shapes(1))
