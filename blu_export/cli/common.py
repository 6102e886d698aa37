"""What the commands share: consoles, progress, options, and the lines at the end of a command that writes."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from blu_export.files import describe_file

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}

ModelOption = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Model file (.onnx, .engine, .h5, .keras). Default: the embedded model."),
]
RuntimeOption = Annotated[
    str, typer.Option(help="auto, onnxruntime, openvino, tensorrt or keras; auto takes the fastest that works here.")
]
PrecisionOption = Annotated[
    str,
    typer.Option(
        help="file (as it is), float32, fp16, bf16 or int8 (the file beside it of that precision), or auto: "
        "the fastest of them that passed its parity check."
    ),
]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: what the runtime chooses.")]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="Threads of the network. Default: the cores this process may use.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]


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


def say(message: str) -> None:
    """A line of prose on stderr."""
    print(printable(message), file=sys.stderr)


def show_log() -> None:
    """Show the package's own log (which runtime was taken, and why) on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("blu_export")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)


def wrote(path: str | Path, next_command: str = "") -> None:
    """Say what was written: path, size, SHA-256, and the command to type next."""
    say(f"wrote {describe_file(path)}")
    if next_command:
        say(f"next: {next_command}")


def printable(text: str) -> str:
    """Text from a file, safe on a terminal: control characters, escape sequences among them, are shown as �."""
    return "".join(char if char.isprintable() or char in "\n\t" else "�" for char in text)


def progress(items: Iterable[T], total: int | None, unit: str = "photos") -> Iterator[T]:
    """Pass items on with a progress line (rate, time left) on stderr; no line off a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield from items
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    # Lines on stdout scroll past the bar on a terminal; into a pipe or file they go untouched.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=total, rate="")
        start = time.perf_counter()
        for done, item in enumerate(items, start=1):
            yield item
            rate = done / (time.perf_counter() - start)
            bar.update(task, advance=1, rate=f"{rate:.2f} {unit}/s" if rate < 10 else f"{rate:.0f} {unit}/s")
