"""What to type for a missing package, as this copy of the project was installed."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from blu_export.extras import EXTRAS, PURPOSES, import_extra, install_command


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'blu-export[cpu]'"),
        ({"url": "file:///home/me/a%20clone", "dir_info": {}}, "pip install '/home/me/a clone[cpu]'"),
        (
            {"url": "file:///home/me/clone", "dir_info": {"editable": True}},
            "pip install -e '/home/me/clone[cpu]'",
        ),
        (
            {"url": "https://git.example/blu", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install 'blu-export[cpu] @ git+https://git.example/blu'",
        ),
        (
            {"url": "https://host.example/blu_export-1-py3-none-any.whl", "archive_info": {}},
            "pip install 'blu-export[cpu] @ https://host.example/blu_export-1-py3-none-any.whl'",
        ),
    ],
)
def test_the_command_names_where_the_package_came_from(
    origin: dict[str, Any] | None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr(metadata, "distribution", lambda name: Installed())
    assert install_command("cpu") == command


def test_a_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert install_command("cpu") == "pip install '.[cpu]' in the clone"


def test_every_extra_has_a_purpose() -> None:
    assert EXTRAS.keys() == PURPOSES.keys()


def test_a_module_that_no_extra_brings_stays_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        import_extra("no_such_module")
