"""Options that several commands have: one type each, with its flag, limits and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blu_export.runtime.options import RunnerOptions

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
ConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        help="Settings of Keras weights: FILE.py with a Matterport Config (FILE.py:Class names one), read and never "
        "run, or a FILE.toml of blu train.",
        metavar="FILE",
    ),
]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A setting of Keras weights, as a Config has it; may be given several times.",
        metavar="NAME=VALUE",
    ),
]
IgnoreLayersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore-layers",
        help="A layer of Keras weights that inference does not need, or a pattern with *; may be given several times.",
        metavar="NAME",
    ),
]
MaxPixelsOption = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="Largest photo that is read, height times width. Default: 100 million."),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", min=8, max=16, help="Bits in use of 16-bit gray photos that do not say: often 12."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, for machines.")]
CachedOption = Annotated[
    bool | None,
    typer.Option(
        "--use-cached-annotations/--rebuild-annotations",
        help="Take DeepFashion2's index without looking whether files changed; or read all files again. "
        "Default: use the index if they did not change.",
    ),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Refuse annotations of which an entry would be left out.")]
ExifOption = Annotated[
    str,
    typer.Option(help="Turn photos as their EXIF says: apply, ignore, or auto: unless annotated as they are stored."),
]
KeepEmptyOption = Annotated[bool, typer.Option("--keep-empty-classes", help="Keep classes without objects.")]
TileOption = Annotated[
    int | None,
    typer.Option(help="Also look at each photo in tiles of this many pixels, for small things."),
]
OverlapOption = Annotated[float, typer.Option(help="Share of a tile that its neighbor sees as well.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Photos or tiles that go through the network at once.")]
NmsOption = Annotated[
    float | None,
    typer.Option(
        "--nms-across-classes",
        metavar="IOU",
        min=0,
        max=1,
        help="Drop a detection whose box has an IoU above this with a better one's, of any class.",
    ),
]


def runner_options(
    runtime: str,
    precision: str,
    device: str | None,
    threads: int | None,
    settings: list[str] | None,
    config: str | None,
    ignore_layers: list[str] | None,
) -> RunnerOptions:
    """What these options, as typer gives them, ask of a runner."""
    return RunnerOptions(
        runtime,
        precision,
        device,
        threads,
        settings=settings or (),
        config=config,
        ignore_layers=ignore_layers or (),
    )
