"""README and docs: links lead somewhere, commands are ones that the command line takes, and the site builds."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from doc_commands import PAGES, ROOT, commands

from blu_export.cli.main import COMMANDS

LINK = re.compile(r"\]\(([^)\s]+)\)")
LOADED = re.compile(r"<(?:script|img|iframe|link)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)")


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "")).strip().lower().replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                yield page, target


@pytest.mark.parametrize(
    ("page", "target"), list(links()), ids=lambda value: value if isinstance(value, str) else value.stem
)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    found = (page.parent / path) if path else page
    assert found.exists(), f"{page.name} links to {target}"
    if anchor and found.suffix == ".md":
        assert anchor in anchors(found), f"{found.name} has no heading #{anchor}"


@pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
def test_commands_are_ones_that_the_command_line_takes(page: str, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0].startswith("-"):
        return
    name = next((known for known in COMMANDS if known.split() == words[: len(known.split())]), None)
    assert name is not None, f"{page}: there is no command {line}"
    module = import_module("blu_export.cli." + name.replace(" ", "_").replace("-", "_"))
    typer.main.get_command(module.app).make_context(f"blu {name}", words[len(name.split()) :])


@pytest.mark.skipif(find_spec("zensical") is None, reason="needs the extra docs")
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for name in ("docs", "blu_export"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "griffe" not in done.stdout + done.stderr, done.stdout + done.stderr  # strict does not count its warnings
    pages = list((tmp_path / "site").glob("*.html"))
    assert {page.stem for page in PAGES if page.parent == ROOT / "docs"} <= {page.stem for page in pages}
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(https?:[^\"' >]+)", page.read_text("utf-8")
        )
        assert not [url for url in loaded if "rel=canonical" not in url], f"{page.name} loads {loaded}"
    api = (tmp_path / "site" / "api.html").read_text(encoding="utf-8")
    assert "blu_export.detector.Detector" in api and "stream" in api
