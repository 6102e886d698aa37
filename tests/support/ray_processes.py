"""Processes of a test's own Ray cluster: a marker in their environment tells them from all others on the machine."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

MARKER = "BLU_TEST_CLUSTER"


def mark(patch: pytest.MonkeyPatch) -> str:
    """Mark what is started from now on; the mark to look for."""
    value = secrets.token_hex(16)
    patch.setenv(MARKER, value)
    return f"{MARKER}={value}"


def marked(mark: str, command: str) -> dict[int, int]:
    """Processes with that mark whose command line holds ``command`` -> their parents."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() not in (folder / "environ").read_bytes().split(b"\0"):
                continue
            if command.encode() in (folder / "cmdline").read_bytes():
                found[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended, or is another user's
            continue
    return found
