"""``blu benchmark``: time models on the runtimes that are here, and compare two runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, printable, say, stdout, wrote
from blu_export.cli.options import ConfigOption, IgnoreLayersOption, JsonOption, SettingsOption, ThreadsOption
from blu_export.errors import EXIT_CHECK_FAILED, UsageError

if TYPE_CHECKING:
    from blu_export.benchmark.settings import Settings

app = command_app()


@app.command()
def benchmark(
    models: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[MODELS...]", help=".onnx, .engine, .h5 or .keras. Default: the embedded model."),
    ] = None,
    photo: Annotated[
        Path | None, typer.Option("--photo", help="The photo to detect on. Default: the demo photo.")
    ] = None,
    runtimes: Annotated[
        list[str] | None,
        typer.Option("--runtime", help="Only this one; may be given several times. Default: all that fit."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few repeats, one batch size, no curves; nothing is remembered.")
    ] = False,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed calls of each candidate.")] = None,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="Folder for benchmark.json, benchmark.md and plots.")
    ] = None,
    swept: Annotated[
        str | None,
        typer.Option(
            "--sweep",
            help="Time for each value of a limit, such as post_nms_rois_inference=1000,500,300, and average precision "
            "on the photos of --dataset.",
            metavar="FIELD=VALUE,…",
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Annotated photos for --sweep: as blu evaluate takes them.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="OLD NEW", help="Two benchmark.json: show ratios, measure nothing."),
    ] = None,
) -> None:
    """Time models per stage on every runtime that is here, beside the limit of this machine.

    The precisions that lie beside an .onnx file take part. Candidates take turns on one photo; the times
    are remembered on this machine for --runtime auto, unless it was noisy or --quick was given. With
    --compare the exit code is 1 when something became more than 5 % slower.

    \b
    blu benchmark
    blu benchmark coco.onnx coco.h5 --save results/
    blu benchmark coco.onnx --runtime openvino --quick --json
    blu benchmark --sweep post_nms_rois_inference=1000,500,300 --dataset data/garments
    blu benchmark --compare old/benchmark.json new/benchmark.json
    """
    if compare is not None:
        _compare(*compare, as_json)
        return
    from blu_export.benchmark.candidates import candidates_of
    from blu_export.benchmark.report import markdown
    from blu_export.benchmark.run import run_benchmark
    from blu_export.embedded import DEMO_PHOTO, embedded
    from blu_export.runtime import RunnerOptions

    if swept is not None or dataset is not None:
        _sweep(models or [embedded()], swept, dataset, _settings(quick, repeats, threads), as_json)
        return
    known = ("keras", "onnxruntime", "openvino", "tensorrt")
    if unknown := [name for name in runtimes or () if name not in known]:
        raise UsageError(f"There is no runtime '{unknown[0]}'.", f"Runtimes are {', '.join(known)}.")
    given = RunnerOptions(settings=settings or (), config=config, ignore_layers=ignore_layers or ())
    candidates = candidates_of(models or [embedded()], runtimes or (), given)
    result = run_benchmark(candidates, photo or embedded(DEMO_PHOTO), _settings(quick, repeats, threads), say)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_markdown(markdown(result))
    if save is not None:
        from blu_export.benchmark.save import save_results

        for path in save_results(result, save, say):
            wrote(path)


def _sweep(models: list[Path], swept: str | None, dataset: str | None, settings: Settings, as_json: bool) -> None:
    from blu_export.benchmark.sweep import parse_sweep, sweep, sweep_table
    from blu_export.data.load import load_dataset

    if swept is None or len(models) != 1:
        raise UsageError(
            "A sweep is of one limit of one model.",
            "Write: blu benchmark MODEL.onnx --sweep post_nms_rois_inference=1000,500,300 --dataset FOLDER",
        )
    field, values = parse_sweep(swept)
    photos = None if dataset is None else load_dataset(dataset, "val")
    result = sweep(models[0], field, values, photos, settings.threads, settings.repeats, say)
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        _print_markdown(sweep_table(result))


def _print_markdown(text: str) -> None:
    """Typeset on a terminal; as it is into a pipe or a file, and where the terminal is too narrow for whole words."""
    text = printable(text)
    if sys.stdout.isatty():
        from rich.markdown import Markdown

        console = stdout()
        with console.capture() as typeset:
            console.print(Markdown(text))
        if "…" not in typeset.get():
            text = typeset.get()
    print(text)


def _settings(quick: bool, repeats: int | None, threads: int | None) -> Settings:
    from dataclasses import replace

    from blu_export.benchmark.settings import QUICK, Settings

    changes: dict[str, Any] = {"repeats": repeats, "threads": threads}
    return replace(QUICK if quick else Settings(), **{name: value for name, value in changes.items() if value})


def _compare(old: Path, new: Path, as_json: bool) -> None:
    from blu_export.benchmark.report import compare, read_results

    table, slower = compare(read_results(old), read_results(new))
    if as_json:
        print(json.dumps({"slower": slower}))
    else:
        _print_markdown(table)
    if slower:
        say(f"slower: {'; '.join(slower)}")
        raise typer.Exit(EXIT_CHECK_FAILED)
