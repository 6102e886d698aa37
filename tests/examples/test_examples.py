"""Each example does what its first lines say, with the default model."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from PIL import Image

from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.image import decode

pytest.importorskip("onnxruntime", reason="needs the extra cpu")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def example(name: str) -> ModuleType:
    spec = spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def photos(folder: Path) -> list[Path]:
    folder.mkdir()
    image = Image.fromarray(decode(embedded(DEMO_PHOTO)))
    for name in ("a.png", "b.jpg"):
        image.save(folder / name)
    return [folder / "a.png", folder / "b.jpg"]


def test_folder_to_csv(tmp_path: Path) -> None:
    names = photos(tmp_path / "in")
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    result = run("folder_to_csv.py", tmp_path / "in", tmp_path / "found.csv")
    with (tmp_path / "found.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["photo"] for line in lines} == set(map(str, names))
    assert "shoes" in {line["class"] for line in lines}
    assert "broken.jpg" in result.stderr


def test_cutouts(tmp_path: Path) -> None:
    photo = photos(tmp_path / "in")[0]
    files = run("cutouts.py", photo, "shoes").stdout.split()
    assert len(files) > 1 and all(".shoes." in file for file in files[1:])
    with Image.open(files[0]) as picture:
        assert picture.mode == "RGBA"


def test_thread_pool(tmp_path: Path) -> None:
    names = photos(tmp_path / "in")
    lines = run("thread_pool.py", *names).stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(map(str, names))
    assert all("Detections(" in line and "shoes" in line for line in lines)


def test_video_tracks(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="needs the extra video")
    image = cv2.cvtColor(decode(embedded(DEMO_PHOTO)), cv2.COLOR_RGB2BGR)
    video = tmp_path / "v.mp4"
    writer = cv2.VideoWriter(str(video), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"mp4v"), 25, image.shape[1::-1])
    for shift in range(12):
        writer.write(np.roll(image, 2 * shift, axis=1))
    writer.release()
    lines = run("video_tracks.py", video).stdout.splitlines()
    assert any("shoes" in line and line.endswith("to 0.4 s") for line in lines)


def test_fastapi_app(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    client = pytest.importorskip("fastapi.testclient").TestClient(example("fastapi_app").app)
    photo = photos(tmp_path / "in")[0]
    answer = client.post("/count", files={"photo": photo.read_bytes()})
    assert answer.status_code == 200 and answer.json()["shoes"] >= 1
    assert client.post("/count", files={"photo": b"no picture"}).status_code == 422


def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel, of the extra dev")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel, of the extra dev")
    pytest.importorskip("ipykernel")
    for package in ("pandas", "supervision"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", os.fspath(EXAMPLES.parent))
    monkeypatch.setenv("IPYTHONDIR", os.fspath(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", os.fspath(tmp_path))
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # outputs are made, not kept
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/png", "text/html"} <= kinds
