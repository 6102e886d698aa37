"""``blu build-engine``: a TensorRT engine of an exported model, and the proof of what it is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blu_export.cli.common import command_app, printable, say, show_log, stderr, wrote
from blu_export.errors import UsageError

if TYPE_CHECKING:
    from blu_export.tensorrt.builder import Progress
    from blu_export.tensorrt.sidecar import Batch

app = command_app()

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@app.command()
def build_engine(
    onnx: Annotated[
        Path | None, typer.Argument(help="File of blu export onnx, of either target. Default: the embedded model.")
    ] = None,
    fp16: Annotated[bool, typer.Option("--fp16", help="Half precision. The default.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="8 bits, with ranges from --calibration photos.")] = False,
    fp32: Annotated[bool, typer.Option("--fp32", help="Single precision.")] = False,
    target: Annotated[
        str | None, typer.Option(help="t4, rtx3090, sm86, … or this-gpu. Default: this GPU; t4 where there is none.")
    ] = None,
    builder: Annotated[
        str, typer.Option(help="tensorrt needs the GPU, tensorrt-rtx none; auto takes what works here.")
    ] = "auto",
    batch: Annotated[str, typer.Option(help="Smallest, best and largest batch.", metavar="MIN,OPT,MAX")] = "1,1,8",
    canvas: Annotated[
        str | None,
        typer.Option(help="fit: canvases that fit the photos, in one engine; or 576x1024. Default: the file's."),
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(help="Most scratch memory while building and running: 4G, 512M.")
    ] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="Kernel timings, kept for the next build.")] = None,
    level: Annotated[int | None, typer.Option(min=0, max=5, help="The builder's optimization level.")] = None,
    calibration: Annotated[
        list[str] | None,
        typer.Option(help="Photos, a folder or a glob to measure precision on. Default: the demo photos."),
    ] = None,
    calibration_method: Annotated[str, typer.Option(help="int8 ranges: minmax, percentile or entropy.")] = "minmax",
    verify: Annotated[bool, typer.Option(help="Compare with the ONNX file on the calibration photos.")] = True,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME.fp16.sm75.engine, here.")] = None,
) -> None:
    """Build a TensorRT engine, check it, and write it with a sidecar that says what it is.

    Without a GPU the engine is built ahead of time by TensorRT-RTX for the named card, and its graph
    is compared with the ONNX file on the processor; the engine itself runs on such a card only.

    \b
    blu build-engine --fp16
    blu build-engine coco.onnx --fp16 --target t4 --batch 1,4,8
    blu build-engine coco.onnx --int8 --calibration photos/ --target this-gpu
    """
    from blu_export.embedded import DEMO_PHOTO, embedded
    from blu_export.export.engine import Request, find_device
    from blu_export.export.engine import build_engine as build
    from blu_export.sources import find_images

    chosen = [name for name, wanted in (("fp16", fp16), ("int8", int8), ("float32", fp32)) if wanted]
    if len(chosen) > 1:
        raise UsageError("An engine has one precision.", "Give one of --fp16, --int8 and --fp32.")
    photos = find_images(calibration or [embedded(DEMO_PHOTO).parent])
    if not photos:
        raise UsageError(f"There are no photos in {', '.join(calibration or [])}.")
    show_log()
    request = Request(
        onnx=onnx or embedded(),
        precision=chosen[0] if chosen else "fp16",
        target=target,
        builder=builder,
        batch=parse_batch(batch),
        canvas=canvas,
        workspace=None if workspace is None else parse_size(workspace),
        timing_cache=timing_cache,
        level=level,
        output=output,
        calibration=tuple(calibration or ()),
        method=calibration_method,
        verify=verify,
    )
    with _progress() as progress:
        path, sidecar = build(request, photos, find_device(), lambda line: say(printable(line)), progress)
    print(path)
    wrote(path.with_name(path.name + ".json"))
    where = "" if sidecar.built_on else f"   (on a machine with the GPU: {sidecar.target})"
    wrote(path, f"blu infer street.jpg --model {path}{where}")


def parse_batch(text: str) -> Batch:
    """``1,4,8``; one number stands for all three."""
    from blu_export.tensorrt.sidecar import Batch

    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    sizes = sizes * 3 if len(sizes) == 1 else sizes
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2]:
        raise UsageError(f"'{text}' is not a range of batch sizes.", "Write MIN,OPT,MAX, for example 1,4,8.")
    return Batch(*sizes)


def parse_size(text: str) -> int:
    """``4G``, ``512M`` or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?)i?B?", text.strip().upper().replace("IB", "B"))
    if match is None or (size := int(float(match[1]) * _UNITS[match[2]])) < 1:
        raise UsageError(f"'{text}' is not an amount of memory.", "Write for example 4G or 512M.")
    return size


@contextmanager
def _progress() -> Iterator[Progress | None]:
    """A bar of the builder's own phases; nothing off a terminal."""
    console = stderr()
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None, visible=False)

        def report(phase: str, done: int, steps: int) -> None:
            bar.update(task, description=phase, completed=done, total=steps, visible=True)

        yield report
