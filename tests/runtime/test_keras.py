"""TensorFlow comes in without its greetings, and nothing else is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

GREETINGS = """WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795734758.912070   10210 port.cc:153] oneDNN custom operations are on.
W0000 00:00:1795734758.912070   10210 cuda.cc:1] Could not find drivers.
"""
NEWS = """E0000 00:00:1795734758.912070   10210 cuda.cc:1] failed call to cuInit
WARNING: this processor is old
"""
IMPORT = "import sys; from blu_export.extras import import_extra; import_extra('tensorflow'); print(2, file=sys.stderr)"


def import_tensorflow(folder: Path, code: str = IMPORT, level: str | None = None) -> str:
    """What is on stderr after an import of TensorFlow, or of the stand-in in a folder."""
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    if level is not None:
        environment["TF_CPP_MIN_LOG_LEVEL"] = level
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    return done.stderr


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    """Greets as TensorFlow does, from below Python, and warns from Python."""
    text = f"import os, sys\nos.write(2, {(GREETINGS + NEWS).encode()!r})\nprint(1, file=sys.stderr)\n"
    (tmp_path / "tensorflow.py").write_text(text)
    return tmp_path


def test_only_greetings_are_left_out(stand_in: Path) -> None:
    assert import_tensorflow(stand_in) == NEWS + "1\n2\n"
    assert import_tensorflow(stand_in, level="0") == GREETINGS + NEWS + "1\n2\n"


def test_debugging_shows_them(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLU_DEBUG", "1")
    assert import_tensorflow(stand_in) == GREETINGS + NEWS + "1\n2\n"


def test_another_thread_leaves_stderr_alone(stand_in: Path) -> None:
    code = f"import threading; threading.Thread(target=exec, args=({IMPORT!r},)).start()"
    assert import_tensorflow(stand_in, code) == GREETINGS + NEWS + "1\n2\n"


def test_an_error_of_the_import_shows(stand_in: Path) -> None:
    with (stand_in / "tensorflow.py").open("a") as file:
        file.write("raise ImportError('a library is broken')\n")
    said = import_tensorflow(stand_in)
    assert said.startswith(NEWS + "1\nTraceback")
    assert said.endswith("ImportError: a library is broken\n")


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow")
def test_tensorflow_itself_is_quiet(tmp_path: Path) -> None:
    said = import_tensorflow(tmp_path)
    assert said.endswith("2\n")
    assert "absl::InitializeLog" not in said and "oneDNN" not in said


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow")
def test_a_model_is_built_without_greetings(tmp_path: Path) -> None:
    weights = Path(__file__).parents[2] / "models" / "garments.h5"
    code = f"from blu_export.model.weights import build_model; build_model({str(weights)!r})"
    said = import_tensorflow(tmp_path, code)
    assert "absl::InitializeLog" not in said and "oneDNN" not in said
