"""What is kept of a loaded model for the workers after the first."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from blu_export.errors import ModelFileError
from blu_export.files import sha256_of
from blu_export.serve.settings import ServeSettings
from blu_export.serve.snapshot import ModelSnapshot
from blu_export.serve.worker_process import ModelInfo, WorkerProcess
from blu_export.spec import ModelSpec

SPEC = ModelSpec(("BG", "coat"))


def info(model: Path, precision: str = "float32") -> ModelInfo:
    return ModelInfo("m", SPEC, "onnxruntime", "CPU", precision, 1, sha256_of(model), 0.1)


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", os.fspath(folder))
    return folder


@pytest.mark.parametrize(
    ("model", "precision", "kept"),
    [
        ("m.onnx", "float32", {"m.onnx"}),
        ("m.onnx", "int8", {"m.onnx", "m.int8.onnx"}),
        ("m.int8.onnx", "int8", {"m.int8.onnx"}),
        ("m.int8.onnx", "bf16", {"m.int8.onnx", "m.onnx"}),
        ("m.onnx", "no/precision", {"m.onnx"}),
        ("m.engine", "fp16", {"m.engine", "m.engine.json"}),
    ],
)
def test_all_that_the_next_worker_needs_is_kept(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, model: str, precision: str, kept: set[str]
) -> None:
    started: list[ServeSettings] = []

    async def start(settings: ServeSettings) -> None:
        started.append(settings)
        found = {path.name: path.read_text() for path in settings.model.parent.iterdir()}
        assert found == {name: f"content of {name}" for name in kept}

    monkeypatch.setattr(WorkerProcess, "start", start)
    for name in ("m.onnx", "m.int8.onnx", "m.fp16.onnx", "m.engine", "m.engine.json"):
        (tmp_path / name).write_text(f"content of {name}")
    given = ModelSnapshot(ServeSettings(tmp_path / model), info(tmp_path / model, precision))
    assert not list(temporary.iterdir())  # nothing that a killed server would leave behind
    for _ in "12":
        for name in kept:
            (tmp_path / name).write_text("another model")
        asyncio.run(given.start())
        assert (started[-1].model.name, started[-1].options.precision) == (
            model,
            "file" if precision == "no/precision" else precision,
        )
    given.close()
    assert not list(temporary.iterdir())


def test_a_file_that_changed_since_it_was_loaded_is_not_taken(tmp_path: Path, temporary: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_text("old")
    loaded = info(model)
    model.write_text("new")
    with pytest.raises(ModelFileError, match="changed while it was being loaded"):
        ModelSnapshot(ServeSettings(model), loaded)
    assert not list(temporary.iterdir())
