"""The user's cache folder: what can be made again, kept so that it need not be.

``BLU_CACHE`` names another folder; ``BLU_CACHE=off`` keeps nothing.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

VARIABLE = "BLU_CACHE"
_OFF = ("off", "0", "no")


def cache_folder(name: str) -> Path | None:
    """The folder ``name`` of this user's cache, made if need be.

    Returns:
        None where caching is switched off, the folder cannot be made, or it belongs to someone else:
        what lies in it is handed to native parsers.
    """
    chosen = os.environ.get(VARIABLE, "")
    if chosen.lower() in _OFF:
        return None
    try:
        folder = (Path(chosen) if chosen else _user_cache() / "blu-export") / name
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return None
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder


def adopt(variable: str, usual: str, name: str) -> None:
    """Let another package keep its files in the folder ``name`` of this cache instead of the user's home.

    Args:
        variable: that the package reads; a value set by the user is kept.
        usual: its usual place below the home; where that exists already, the package goes on using it.
        name: of the folder here. Where nothing is cached, the package does as it always does.
    """
    if variable not in os.environ and not os.path.exists(os.path.expanduser(usual)):
        folder = cache_folder(name)
        if folder is not None:
            os.environ[variable] = os.fspath(folder)


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def keep_newest(folder: Path, bytes_allowed: int) -> None:
    """Remove the entries of a cache folder that were not used for longest, until the rest is small enough.

    An entry is a folder of files; its own modification time says when it was used last. Entries that
    another process has open stay readable for it where the system allows that, and stay where not.
    """
    entries = []
    for entry in folder.iterdir():
        try:
            size = sum(file.stat().st_size for file in entry.iterdir())
            entries.append((entry.stat().st_mtime, size, entry))
        except OSError:
            continue  # not a folder, or another process removed it
    kept = 0
    for _, size, entry in sorted(entries, reverse=True):
        kept += size
        if kept > bytes_allowed:
            shutil.rmtree(entry, ignore_errors=True)
