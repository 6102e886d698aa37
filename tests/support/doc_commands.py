"""The ``blu`` commands in fenced blocks of README and docs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "models" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
SHELLS = ("", "sh", "bash", "console")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"'[^']*'")
USES_SHELL = re.compile(r"[$<>*`…\[\]]")


def commands() -> Iterator[tuple[str, str]]:
    """(page, command line) of every command as a shell would hand it over; what it is piped to is cut off."""
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language in SHELLS:
                for line in block.replace("\\\n", " ").splitlines():
                    line = re.sub(r"\s+#.*", "", line).strip().removeprefix("$ ").partition(" | ")[0]
                    if line.startswith("blu ") and not USES_SHELL.search(QUOTED.sub("", line)):
                        yield page.name, line
