"""The ``blu`` command: a table of commands whose modules are imported on use.

One place turns errors into a sentence on stderr and an exit code.
"""

from __future__ import annotations

import os
import re
import select
import sys
from importlib import import_module
from importlib.util import find_spec
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from blu_export import __version__
from blu_export.cli.interrupt import interrupt_after_import
from blu_export.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, BluError, UsageError

COMMANDS = {
    "infer": "Find objects on photos, in folders or on a video.",
    "train": "Train a model on COCO or DeepFashion2.",
    "evaluate": "Average precision (COCO) of a model.",
    "export onnx": "Keras weights to an ONNX file, checked.",
    "export triton": "A model repository for the Triton server.",
    "build-engine": "A TensorRT engine from an ONNX file, checked.",
    "verify": "Compare two models instance by instance.",
    "benchmark": "Time models per stage.",
    "data check": "What is in a data set, and what is wrong with it.",
    "data convert": "Annotations of any tool as COCO or YOLO.",
    "data split": "Divide a data set into parts.",
    "data label": "Pseudo-labels for photos whose classes are known.",
    "serve": "Serve a model over HTTP.",
    "batch": "Run a model over a large set of photos, resumable.",
    "inspect": "What a model file holds, and its measured parity.",
    "doctor": "What is installed here, and what is missing.",
}
"""Command -> its line in ``blu --help``. ``build-engine`` lives in ``cli/build_engine.py``, ``export onnx``
in ``cli/export_onnx.py``: a module whose ``app`` is common.command_app(). A command is listed once it is there."""

GROUPS = {"export": "Export a model: onnx, triton.", "data": "Data sets: check, convert, split, label."}
"""First words of two-word commands -> their line in ``blu --help``."""

EXAMPLES = """
Examples:

  blu infer street.jpg --format table --format overlay

  blu export onnx --weights mask_rcnn_coco.h5 -o coco.onnx

  blu build-engine coco.onnx --fp16

  blu inspect coco.onnx
"""


def _reader_has_gone() -> bool:
    """Whether stdout has no reader any more; where the system cannot tell (Windows), a broken pipe means it."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


class LazyCommand(TyperCommand):
    """A line of the help until it is called; then the command of its module."""

    def __init__(self, name: str, module: str, help: str) -> None:
        super().__init__(name, help=help)
        self.module = module

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the module and let its command parse the arguments.

        Raises:
            UsageError: an argument is empty. As a path it would be the current folder.
        """
        if any(re.fullmatch("(--[a-z-]+=)?", argument) for argument in args):
            raise UsageError("An argument is empty.", "Is a variable of the shell not set?")
        command = typer.main.get_command(import_module(self.module).app)
        command.name = self.name
        return command.make_context(info_name, args, parent=parent, **extra)


class LazyGroup(TyperGroup):
    """The commands of COMMANDS that start with this group's words and whose module exists."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; end well where stdout's reader wants no more, as in ``blu infer photos/ --json | head``."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            if not _reader_has_gone():
                raise
            # What is still buffered would fail once more when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Names in the order of the table."""
        return list(self._lines(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or group of that name; None where there is none."""
        line = self._lines(ctx).get(cmd_name)
        if line is None:
            return None
        prefix = _words(ctx)
        if not prefix and cmd_name in GROUPS:
            return LazyGroup(name=cmd_name, help=line, no_args_is_help=True, rich_markup_mode=None)
        return LazyCommand(cmd_name, _module(" ".join([*prefix, cmd_name])), line)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Typer suggests names from ``commands`` for one that does not exist."""
        self.commands = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        return super().resolve_command(ctx, args)

    def _lines(self, ctx: Any) -> dict[str, str]:
        prefix, lines = _words(ctx), {}
        for command, line in COMMANDS.items():
            words = command.split()
            if words[: len(prefix)] != prefix or find_spec(_module(command)) is None:
                continue
            name = words[len(prefix)]
            lines[name] = line if len(words) == len(prefix) + 1 else GROUPS[name]
        return lines


def _words(ctx: Any) -> list[str]:
    """The words of the command line before this context: [] for ``blu``, ["export"] for ``blu export``."""
    return [] if ctx.parent is None else [*_words(ctx.parent), ctx.info_name]


def _module(command: str) -> str:
    return "blu_export.cli." + command.replace(" ", "_").replace("-", "_")


app = typer.Typer(
    name="blu",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXAMPLES,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"blu {__version__}")
        raise typer.Exit


@app.callback()
def _blu(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train a Mask R-CNN in Keras; get the same detections, checked, several times faster."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Exit codes: 0 good, 1 a check failed, 2 usage, 3 bad input or model file, 4 missing package or
    device, 130 interrupted. ``BLU_DEBUG=1`` shows the traceback of an error.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character gets a ?, not a traceback
    try:
        with interrupt_after_import():
            app(arguments, prog_name="blu")
    except KeyboardInterrupt:
        _fail("interrupted", EXIT_INTERRUPTED)
    except BluError as error:
        _fail(str(error), error.exit_code)
    except ModuleNotFoundError as error:
        from blu_export.extras import missing_extra

        if (missing := missing_extra(error)) is None:
            raise
        _fail(str(missing), missing.exit_code)
    except OSError as error:
        if error.filename is None:  # not about a file that the user named
            raise
        _fail(f"{error.filename}: {error.strerror}.", EXIT_BAD_INPUT)


def _fail(message: str, code: int) -> None:
    if os.environ.get("BLU_DEBUG"):
        raise
    from blu_export.cli.common import printable

    print(f"error: {printable(message)}", file=sys.stderr)
    sys.exit(code)
