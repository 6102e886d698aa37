"""``blu verify``: two models on the same photos, instance by instance."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, printable, progress, say, show_log
from blu_export.cli.options import (
    ConfigOption,
    DeviceOption,
    IgnoreLayersOption,
    JsonOption,
    RuntimeOption,
    SettingsOption,
    ThreadsOption,
)
from blu_export.errors import EXIT_CHECK_FAILED, UsageError

if TYPE_CHECKING:
    from blu_export.model.given import Given
    from blu_export.runtime import RunnerOptions
    from blu_export.runtime.base import Runner
    from blu_export.spec import ModelSpec

app = command_app()


@app.command()
def verify(
    reference: Annotated[
        Path, typer.Argument(help="The model that is right: .h5, .keras, a folder of checkpoints, .onnx or .engine.")
    ],
    candidate: Annotated[Path, typer.Argument(help="The model that should find the same.")],
    images: Annotated[
        list[str] | None, typer.Option("--images", help="Photos, a folder or a glob; may be given several times.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N photos.")] = None,
    stages: Annotated[
        bool, typer.Option("--stages", help="Compare intermediate tensors too, and name the first that drifts.")
    ] = False,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    as_json: JsonOption = False,
    runtime: RuntimeOption = "auto",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Compare two models instance by instance; exit code 1 when they differ more than they may.

    Instances are paired (same class, boxes that overlap) before they are compared. Keras weights run
    with the other model's settings and class names, so that only the arithmetic differs, unless --config
    or --set say what they are. --runtime, --device and --threads are the candidate's. Without --images
    the demo photo is used.

    \b
    blu verify mask_rcnn_coco.h5 coco.onnx --images photos/ --limit 20
    blu verify coco.onnx coco-int8.onnx --images photos/ --stages
    """
    from blu_export.embedded import DEMO_PHOTO, embedded
    from blu_export.model.checkpoints import resolve_weights
    from blu_export.model.given import Given
    from blu_export.parity.verify import verify as compare
    from blu_export.runtime import RunnerOptions
    from blu_export.sources import find_images

    photos = find_images(images or [embedded(DEMO_PHOTO)])[:limit]
    if not photos:
        raise UsageError(f"There are no photos in {', '.join(images or [])}.")
    show_log()
    (reference, note), (candidate, other_note) = resolve_weights(reference), resolve_weights(candidate)
    for line in filter(None, (note, other_note)):
        say(line)
    given = Given.of(None, settings or (), ignore_layers or (), config)
    first, second = _load_pair(reference, candidate, RunnerOptions(runtime, device=device, threads=threads), given)
    report = compare(first, second, progress(photos, len(photos)))
    result = report.to_json()
    lines = report.lines()
    if stages:
        drifts, text = _stages(first, reference, second, candidate, photos[0])
        result["stages"] = drifts
        lines += text
    print(json.dumps(result, indent=2) if as_json else printable("\n".join(lines)))
    if not report.passed:
        say("The two differ more than they may." + ("" if stages else " --stages shows where."))
        raise typer.Exit(EXIT_CHECK_FAILED)


def _load_pair(reference: Path, candidate: Path, options: RunnerOptions, given: Given) -> tuple[Runner, Runner]:
    """Both models; Keras weights under the settings and class names of the other one where none are given."""
    from blu_export.parity.verify import require_same_model, settings_of
    from blu_export.runtime import WEIGHT_SUFFIXES, load_runner
    from blu_export.runtime.keras import KerasRunner

    def in_keras(path: Path, device: str | None, like: ModelSpec | None) -> Runner:
        told = given
        if like is not None and given.config is None and not given.settings:
            told = replace(given, class_names=like.class_names, settings=tuple(settings_of(like)))
        return KerasRunner(path, device, told)

    is_weights = [path.suffix.lower() in WEIGHT_SUFFIXES and path.is_file() for path in (reference, candidate)]
    first: Runner
    second: Runner
    if is_weights == [False, True]:
        first = load_runner(reference)
        second = in_keras(candidate, options.device, first.spec)
    else:
        second = in_keras(candidate, options.device, None) if is_weights[1] else load_runner(candidate, options)
        first = in_keras(reference, None, second.spec) if is_weights[0] else load_runner(reference)
    require_same_model(first.spec, second.spec)
    return first, second


def _stages(
    first: Runner, reference: Path, second: Runner, candidate: Path, photo: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Drift by stage on one photo: as JSON values, and as lines for people."""
    from blu_export.image import decode, mold
    from blu_export.parity.stages import compare_stages, first_drift, stage_source

    molded = mold(decode(photo, channels=second.spec.image_channel_count), second.spec)
    tensors = [stage_source(runner, path)(molded) for runner, path in ((first, reference), (second, candidate))]
    drifts = compare_stages(tensors[0], tensors[1], second.precision)
    values = [
        {"name": stage.name, "drift": stage.drift, "lost": stage.lost, "drifted": stage.drifted} for stage in drifts
    ]
    lines = [f"stages on {photo}: relative difference, share of rows in one model only"]
    lines += [
        f"  {'✗' if stage.drifted else '✓'} {stage.name:<12} {stage.drift:9.2e} {stage.lost:7.2%}" for stage in drifts
    ]
    drifted = first_drift(drifts)
    lines.append(f"  first to drift: {drifted.name}" if drifted else f"  none beyond {drifts[0].limit:g}")
    return values, lines
