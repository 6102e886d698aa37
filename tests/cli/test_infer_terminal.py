"""``blu infer`` where people read it: narrow terminals, pipes, other encodings, quiet and verbose."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")

FakeOnnx = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def photo(folder: Path, name: str = "street.png", level: int = 204) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((40, 60, 3), level, np.uint8)).save(folder / name)
    return folder / name


@pytest.fixture(scope="module")
def command(fake_onnx: FakeOnnx) -> list[str]:
    return [sys.executable, "-m", "blu_export", "infer", "--model", str(fake_onnx()), "--threads", "1"]


def environment(**more: str) -> dict[str, str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR")}
    return plain | {"TERM": "xterm"} | more


def on_terminal(arguments: list[str], folder: Path, columns: int, **more: str) -> tuple[int, str]:
    """Exit code, and all that a terminal of that many columns receives."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        arguments, cwd=folder, stdout=slave, stderr=slave, stdin=slave, env=environment(COLUMNS=str(columns), **more)
    )
    os.close(slave)
    received = b""
    try:
        while block := os.read(master, 65536):
            received += block
    except OSError:  # Linux: the other end is closed
        pass
    os.close(master)
    return process.wait(), received.decode()


def screen(received: str) -> list[str]:
    """The lines that stay on a terminal: what is erased is gone."""
    lines = []
    for line in received.replace("\r\n", "\n").split("\n"):
        lines.append(ESCAPES.sub("", line.rpartition("\x1b[2K")[2]).rstrip())
    return lines


def test_a_terminal_of_sixty_columns(command: list[str], tmp_path: Path) -> None:
    photo(tmp_path)
    code, received = on_terminal([*command, "street.png", "--min-score", "0"], tmp_path, 60)
    lines = screen(received)
    assert code == 0
    assert max(len(line) for line in lines if "coat" in line or "shoe" in line or "──" in line) <= 60
    (head,) = [line.split() for line in lines if "score" in line]
    assert head[:2] == ["class", "score"]
    assert "photo" not in head
    assert "street.png  60×40  2 found" in lines
    assert (tmp_path / "out" / "street.overlay.jpg").is_file()
    assert "wrote out/street.overlay.jpg" in lines
    _, wide = on_terminal([*command, "street.png"], tmp_path, 120)
    assert "of photo" in wide


def test_one_photo_has_no_bar_and_many_leave_none_behind(command: list[str], tmp_path: Path) -> None:
    for index in range(6):
        photo(tmp_path / "in", f"{index}.png")
    code, received = on_terminal([*command, "in"], tmp_path, 80)
    assert code == 0
    assert "1/6" in received
    lines = screen(received)
    assert [line for line in lines if ".png" in line] == [
        f"in/{index}.png  60×40  1 found: 1 coat, 1 below 0.5 not shown" for index in range(6)
    ]
    assert not any("photos/s" in line for line in lines)
    _, one = on_terminal([*command, "in/0.png"], tmp_path, 80)
    assert "1/1" not in one


def test_json_is_never_wrapped(command: list[str], tmp_path: Path) -> None:
    for index in range(3):
        photo(tmp_path / "in", f"{index}.png")
    code, received = on_terminal([*command, "in", "--json"], tmp_path, 40)
    assert code == 0
    records = [json.loads(line) for line in screen(received) if line.startswith("{")]
    assert [record["image"] for record in records] == ["in/0.png", "in/1.png", "in/2.png"]
    assert not (tmp_path / "out").exists()


def test_into_a_pipe_nothing_is_written(command: list[str], tmp_path: Path) -> None:
    photo(tmp_path)
    result = subprocess.run([*command, "street.png"], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert result.returncode == 0
    assert "coat" in result.stdout and "\x1b" not in result.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437", "utf-8"])
def test_any_encoding(command: list[str], tmp_path: Path, encoding: str) -> None:
    name = os.fsdecode(b"stra\xc3\x9fe \xe2\x98\x83.png")
    photo(tmp_path, name)
    for options in ([], ["--json"]):
        result = subprocess.run(
            [*command, name, *options], cwd=tmp_path, capture_output=True, env=environment(PYTHONIOENCODING=encoding)
        )
        assert (result.returncode, b"Traceback" in result.stderr) == (0, False)
        assert b"coat" in result.stdout
    assert json.loads(result.stdout)["image"] == name


def test_a_reader_that_leaves(command: list[str], tmp_path: Path) -> None:
    for index in range(40):
        photo(tmp_path / "in", f"{index}.png")
    process = subprocess.Popen(
        [*command, "in", "--json", "--quiet"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    with process.stdout, process.stderr:
        assert json.loads(process.stdout.readline())["image"] == "in/0.png"
        process.stdout.close()
        error = process.stderr.read().decode()
    assert (process.wait(), error) == (0, "")


def test_no_color(command: list[str], tmp_path: Path) -> None:
    photo(tmp_path)
    _, received = on_terminal([*command, "street.png"], tmp_path, 80, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", received)


def test_a_hint_is_given_once(command: list[str], tmp_path: Path) -> None:
    photo(tmp_path)
    texts = []
    for options in ([], [], ["--verbose"], ["--quiet"]):
        result = subprocess.run(
            [*command, "street.png", *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=environment(BLU_CACHE=str(tmp_path / "cache")),
        )
        texts.append(result.stderr)
    assert ["blu benchmark" in text for text in texts] == [True, False, True, False]
    assert ["1 photo in" in text for text in texts] == [True, True, True, False]
    assert ["decode" in text for text in texts] == [False, False, True, False]
    assert texts[3] == ""


def test_quiet_still_says_what_failed(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    result = subprocess.run([*command, "a.png", "-q"], cwd=tmp_path, capture_output=True, text=True, env=environment())
    assert result.returncode == 3
    assert "skipped: a.png" in result.stderr


@pytest.mark.parametrize(
    "words", ["infer photo -m X", "serve X", "benchmark X", "inspect X", "build-engine X", "verify X X",
              "evaluate X photo", "export triton X", "export onnx --weights X", "batch in out -m X"],
)  # fmt: skip
def test_a_file_that_is_not_a_model(words: str, tmp_path: Path) -> None:
    (tmp_path / "X").write_bytes(b"\xff\xd8 a picture, say")
    photo(tmp_path / "in").rename(tmp_path / "photo")
    photo(tmp_path / "in")
    result = subprocess.run(
        [sys.executable, "-m", "blu_export", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert (result.returncode, "Traceback" in result.stderr) == (3, False), result.stderr


def test_tracks_of_a_video(command: list[str], tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    import csv

    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for _ in range(6):
        writer.write(np.full((48, 64, 3), 204, np.uint8))
    writer.release()
    formats = ["--format", "csv", "--format", "json", "--format", "overlay"]
    subprocess.run([*command, "v.mp4", "--track", "--stride", "2", *formats], cwd=tmp_path, check=True)
    with (tmp_path / "out" / "detections.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len({line["frame"] for line in lines}) == 3
    assert {(line["class"], line["track"]) for line in lines} == {("coat", "1"), ("shoe", "-1")}  # the shoe is doubtful
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "out").glob("*.json"))]
    assert [record["detections"][0]["track"] for record in records] == [1, 1, 1]
    assert {record["image"] for record in records} == {"v.mp4"}
