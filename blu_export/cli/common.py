"""What the commands share: consoles, progress, the log, and the lines at the end of a command that writes."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from blu_export.cache import cache_folder
from blu_export.files import describe_file

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


def command_app(**settings: Any) -> typer.Typer:
    """The ``app`` of a command's module."""
    return typer.Typer(
        add_completion=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def stdout() -> Console:
    """The console for results."""
    from rich.console import Console

    return Console(highlight=False)


def stderr() -> Console:
    """The console for progress and prose."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


_quiet = False


def be_quiet() -> None:
    """Leave out progress and prose from here on; errors are still shown."""
    global _quiet
    _quiet = True


def say(message: str) -> None:
    """A line of prose on stderr."""
    if not _quiet:
        complain(message)


def complain(message: str) -> None:
    """A line on stderr about what went wrong."""
    _line.hide()
    print(printable(message), file=sys.stderr)


def show_log(once: bool = False) -> None:
    """Show the package's own log (which runtime was taken, and why) on stderr.

    Args:
        once: lines that are not warnings only the first time on this machine; the user's cache knows.
    """
    handler = logging.StreamHandler()
    if once:
        handler.addFilter(_is_new)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("blu_export")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def _is_new(record: logging.LogRecord) -> bool:
    """Whether a line of the log is a warning, or was not shown before; without a cache everything is new."""
    if record.levelno >= logging.WARNING:
        return True
    if _quiet:
        return False
    folder = cache_folder("shown")
    if folder is None:
        return True
    mark = folder / hashlib.sha256(record.getMessage().encode(errors="replace")).hexdigest()[:24]
    known = mark.exists()
    mark.touch()
    return not known


def wrote(path: str | Path, next_command: str = "") -> None:
    """Say what was written: path, size, SHA-256, and the command to type next."""
    say(f"wrote {describe_file(path)}")
    if next_command:
        say(f"next: {next_command}")


def printable(text: str) -> str:
    """Text from a file, safe on a terminal: control characters, escape sequences among them, are shown as �."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def progress(items: Iterable[T], total: int | None, unit: str = "photos") -> Iterator[T]:
    """Pass items on with a progress line (rate, time left) on stderr while they are waited for.

    The line is gone whenever an item is passed on, so that what is printed then stands by itself. There is none off a
    terminal, for a single item, and where ``quiet`` was asked for.
    """
    console = stderr()
    if not console.is_terminal or total == 1 or _quiet:
        yield from items
        return
    start = time.perf_counter()
    try:
        for done, item in enumerate(items, start=1):
            _line.hide()
            yield item
            rate = done / (time.perf_counter() - start)
            if total is None or done < total:
                _line.show(_progress_line(done, total, rate, unit, console.encoding), console)
    finally:
        _line.hide()


class _Line:
    """The progress line, which anything else that is printed takes away first."""

    def __init__(self) -> None:
        self._console: Console | None = None

    def show(self, text: str, console: Console) -> None:
        self.hide()
        print(text[: console.width - 1], end="", file=sys.stderr, flush=True)
        self._console = console

    def hide(self) -> None:
        if self._console is None:
            return
        from rich.control import Control
        from rich.segment import ControlType

        self._console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))
        self._console = None


_line = _Line()


BAR = 24
"""Characters of the bar."""


def _progress_line(done: int, total: int | None, rate: float, unit: str, encoding: str) -> str:
    """``████████░░░░ 12/40  3.21 photos/s  9 s left``."""
    speed = f"{rate:.2f} {unit}/s" if rate < 10 else f"{rate:.0f} {unit}/s"
    if not total:
        return f"{done}  {speed}"
    full, empty = ("█", "░") if encoding.lower().startswith("utf") else ("#", ".")
    filled = min(BAR, BAR * done // total)
    left = max(0, total - done) / rate
    seconds = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
    return f"{full * filled}{empty * (BAR - filled)} {done}/{total}  {speed}  {seconds} left"
