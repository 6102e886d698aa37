"""Placement on a cluster's machines, and what a killed process leaves there."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from blu_export.cluster import Share, config_in, divide, model_files, model_folder
from blu_export.errors import UsageError


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": resources}


def test_workers_share_the_machines() -> None:
    nodes = [node(CPU=8.0), node(CPU=4.0), {"Alive": False, "Resources": {}}]
    assert divide(nodes, None, None, False) == Share(2, 4, 0)
    assert divide(nodes, 4, None, False) == Share(4, 2, 0)
    assert divide(nodes, 3, 1, False) == Share(3, 1, 0)
    gpus = [node(CPU=8.0, GPU=2.0), node(CPU=8.0)]
    assert divide(gpus, None, None, True) == Share(2, 4, 1)
    with pytest.raises(UsageError, match="3 workers of 4 CPUs and a GPU each do not fit"):
        divide(gpus, 3, 4, True)
    with pytest.raises(UsageError, match="2 workers of 8 CPUs each do not fit"):
        divide(nodes, 2, 8, False)
    with pytest.raises(UsageError, match="No machine of the cluster has a GPU"):
        divide(nodes, None, None, True)


KILLED = """
import os
from blu_export.cluster import model_folder
with model_folder({"m": b"x"}):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files, of this process and of those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_models_files_are_there_inside_the_block_only(temporary: Path) -> None:
    (temporary / "m.engine").write_bytes(b"engine")
    (temporary / "m.engine.json").write_bytes(b"sidecar")
    with model_folder(model_files(temporary / "m.engine")) as folder:
        assert (folder / "m.engine").read_bytes() == b"engine"
        assert (folder / "m.engine.json").read_bytes() == b"sidecar"
        with model_folder({}):  # another process's, which leaves ours alone
            assert folder.is_dir()
    assert sorted(os.listdir(temporary)) == ["m.engine", "m.engine.json"]


def test_the_copy_of_a_killed_process_goes_with_the_next_one(temporary: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED], check=False).returncode == -9
    assert len(list(temporary.iterdir())) == 1
    with model_folder({"n": b"y"}) as folder:
        assert list(temporary.iterdir()) == [folder]
    assert not list(temporary.iterdir())


def test_a_settings_file_comes_along(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_bytes(b"weights")
    (tmp_path / "mine.py").write_bytes(b"class MyConfig(Config): pass")
    config = f"{tmp_path / 'mine.py'}:MyConfig"
    with model_folder(model_files(tmp_path / "m.h5", config)) as folder:
        there = config_in(folder, config)
        assert there == f"{folder / 'mine.py'}:MyConfig"
        assert (folder / "mine.py").read_bytes() == (tmp_path / "mine.py").read_bytes()
    with pytest.raises(UsageError, match=r"no settings file .*absent\.py"):
        model_files(tmp_path / "m.h5", str(tmp_path / "absent.py"))
