"""``blu train``: train a model on COCO or DeepFashion2."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, progress, say, show_log, wrote
from blu_export.cli.options import BitsOption, CachedOption, MaxPixelsOption
from blu_export.cli.train_inputs import make_spec, open_additions, open_data
from blu_export.errors import UsageError
from blu_export.extras import import_extra
from blu_export.train.config import MODEL_FIELDS, RunConfig
from blu_export.train.run_folder import LEFT_OUT

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset
    from blu_export.train.fit import Trainer

app = command_app()

RUNS = Path("runs")
CALIBRATION_PHOTOS = 8


@app.command()
def train(
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Folder, bucket (s3://…) or COCO file with the training photos; DeepFashion2 or COCO layout."
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(help="The same for validation. Default: the validation part of --dataset, if it has one."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="TOML file with the tables [data], [model] and [train], or FILE.py with a Matterport Config, whose "
            "settings of the model are taken.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="TABLE.FIELD=VALUE over the file, e.g. train.learning_rate=0.001; may be repeated."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Start from imagenet, coco, last (the newest run), a file, or none.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="heads, 5+, 4+, 3+ or all; or stages: heads:5,4+:5,all:20.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the whole run.")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Steps per epoch. Default: one pass over the photos.")
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="Learning rate after the warm-up of a stage.")
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Photos per step, over all devices. Default: what fits in memory, up to 4."),
    ] = None,
    canvas: Annotated[
        str | None, typer.Option(help="Training crop in pixels: 512, or HEIGHTxWIDTH; multiples of 64.")
    ] = None,
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos.")] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Refuse annotations of which an entry would be left out.")
    ] = None,
    exif: Annotated[
        str | None, typer.Option(help="Turn photos as their EXIF says: auto (see blu data check), apply or ignore.")
    ] = None,
    keep_empty_classes: Annotated[
        bool | None, typer.Option("--keep-empty-classes", help="Keep classes without objects.")
    ] = None,
    max_pixels: MaxPixelsOption = None,
    bits: BitsOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use this many photos only, for a quick look.")] = None,
    cached: CachedOption = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Run folder. Default: a new one under runs/.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the run in --out, with its own settings; --lr, --epochs and --layers may change what is "
            "still to come.",
        ),
    ] = False,
    distribute: Annotated[
        str, typer.Option(help="none, mirrored (all GPUs here) or workers (the machines in TF_CONFIG).")
    ] = "none",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be trained, make one step, stop.")
    ] = False,
) -> None:
    """Train a Mask R-CNN on annotated photos.

    \b
    blu train --dataset photos/ --weights imagenet
    blu train --config garments.toml --set train.epochs=10
    blu train --resume --out runs/garments
    """
    options = {
        "data.train": dataset,
        "data.val": val,
        "data.limit": limit,
        "data.images": images,
        "data.strict": strict,
        "data.exif": exif,
        "data.keep_empty_classes": keep_empty_classes,
        "data.max_pixels": max_pixels,
        "data.bits": bits,
        "weights": weights,
        "train.layers": layers,
        "train.epochs": epochs,
        "train.steps_per_epoch": steps,
        "train.learning_rate": learning_rate,
        "train.batch": batch,
        "train.canvas": canvas and parse_canvas(canvas),
    }
    if resume:
        if config is not None:
            options["--config"] = str(config)
        if out is None:
            raise UsageError("Which run is to be resumed?", "Write: blu train --resume --out FOLDER")
        from blu_export.train.resume import resumed_run

        run = resumed_run(out, options, settings or [])
    else:
        if config is not None and ".py" in config.suffix:  # FILE.py, or FILE.py:Class
            options, config = _options_of(config) | options, None
        run = RunConfig.read(config, settings or [], options)
    start_run(run, out or RUNS / time.strftime("%Y%m%d-%H%M%S"), resume, distribute, dry_run, cached)


def _options_of(config: Path) -> dict[str, Any]:
    """The settings of the model in a Matterport ``Config``, as options of a run."""
    from blu_export.model.config_file import read_config

    found = read_config(str(config))
    for line in found.lines():
        say(line)
    if found.unread:
        raise UsageError(
            f"{found.source}: {next(iter(found.unread.values()))} cannot be read without running the file.",
            "Write the settings of the model into a TOML file.",
        )
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in found.values.items()}
    if values.get("image_resize_mode") == "crop":
        say(f"{found.source}: IMAGE_RESIZE_MODE crop is --canvas here; the canvas of inference stays square")
        del values["image_resize_mode"]
    return {f"model.{name}": value for name, value in values.items()}


def parse_canvas(text: str) -> list[int]:
    """``512`` or ``384x256`` to [height, width]."""
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise UsageError(f"'{text}' is not a canvas.", "Write 512, or 384x256 for height and width.")
    return [int(sides[0]), int(sides[-1])]


def start_run(
    run: RunConfig, folder: Path, resume: bool, distribute: str, dry_run: bool, cached: bool | None = None
) -> None:
    """Open the data, build the model, train, and say what was written."""
    import_extra("tensorflow")
    keras = import_extra("keras")
    from blu_export.cli.train_progress import TrainProgress
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.distribute import is_chief, make_deterministic, make_strategy
    from blu_export.train.fit import Trainer
    from blu_export.train.memory import fit_memory
    from blu_export.train.run_folder import RunFolder
    from blu_export.train.samples import training_canvas
    from blu_export.train.start import load_start, newest_weights
    from blu_export.train.validate import Validator

    show_log()
    # On every worker, and before they meet: one without the others waits forever.
    if not (resume or dry_run) and (folder / "config.toml").exists():
        raise UsageError(f"There is a run in {folder} already.", "Resume it with --resume, or choose another --out.")
    strategy = make_strategy(distribute)
    chief = is_chief(strategy)
    photos, validation = open_data(run.data, cached)
    photos, backgrounds = open_additions(run.data, photos)
    if run.weights == "last":  # which run that is changes with time
        run = dataclasses.replace(run, weights=str(newest_weights(RUNS)))
    spec = make_spec(run, photos)
    photos = photos.with_channels(spec.image_channel_count)
    validation = validation and validation.with_channels(spec.image_channel_count)
    backgrounds = backgrounds and backgrounds.with_channels(spec.image_channel_count)
    run = dataclasses.replace(run, model={name: getattr(spec, name) for name in MODEL_FIELDS})
    changed = resume and run.changes != RunConfig.read(folder / "config.toml").changes
    settings = run.train
    keras.utils.set_random_seed(settings.seed)
    make_deterministic()
    keras.config.set_dtype_policy("float32" if settings.precision == "float32" else f"mixed_{settings.precision}")
    with strategy.scope():
        model = MaskRCNN(spec.replace(image_resize_mode="none"))
    if not resume:
        settings = fit_memory(model, training_canvas(spec, settings), settings, strategy.num_replicas_in_sync)
        run = dataclasses.replace(run, train=settings)
    writes = chief and not dry_run
    validator = None
    if validation is not None:
        shown = validation.limited(settings.validate_photos or None)
        validator = Validator(shown, watch=progress, unreadable=settings.unreadable)
    trainer = Trainer(spec, model, photos, settings, None, validator, strategy, backgrounds)
    validate_start = False
    if resume and trainer.resume(folder, changed):
        say(f"resuming after epoch {trainer.progress.epoch} of {settings.total_epochs}")
        if changed:
            say(f"changed for what is to come: {list(run.changes.values())[-1]}")
    else:
        examples = [trainer.make(number)["image"] for number in range(CALIBRATION_PHOTOS)]
        begun = load_start(model, run.weights, examples, settings.seed)
        if begun.note:
            say(f"start: {begun.note}")
        validate_start = begun.knows(spec.class_names)
        say(f"start: {len(begun.loaded)} layers from {begun.source}")
        if begun.loaded and begun.fresh:
            say(f"start: {len(begun.fresh)} layers are random: {', '.join(begun.fresh)}")
    size = "x".join(map(str, trainer.canvas))
    say(
        f"{len(photos)} photos, {spec.num_classes - 1} classes, canvas {size}, batch {settings.batch}, "
        f"{trainer.steps} steps per epoch"
    )
    if dry_run:
        _dry_run(trainer, validation)
        return
    if writes:  # not before all that can be refused has been
        trainer.folder = RunFolder(folder)
        trainer.folder.save_config(run)
    try:
        with TrainProgress(settings.total_epochs, trainer.steps, settings.batch) as on_step:
            trainer.run(lambda row: say(describe(row, settings.total_epochs)), on_step, validate_start)
    except KeyboardInterrupt:
        say(f"continue with: blu train --resume --out {folder}")
        raise
    finally:
        _say_left_out(trainer, folder)
    if trainer.exhausted:
        say(f"stopped early: no better mask AP in {settings.patience} validations")
    if writes:
        best = folder / "best.h5"
        result = best if best.exists() else folder / "final.h5"
        wrote(result, f"blu export onnx --weights {result}")


def _say_left_out(trainer: Trainer, folder: Path) -> None:
    """How many photos could not be read, and where they are listed."""
    counts = [f"{len(found)} of {part}" for part, found in trainer.unreadable.items() if len(found)]
    if counts:
        say(f"photos that cannot be read: {', '.join(counts)}; listed in {folder / LEFT_OUT}")


def _dry_run(trainer: Trainer, validation: Dataset | None) -> None:
    """Say what a run would do, and make its first step."""
    config = trainer.config
    counted = f"{len(validation)} photos" if validation is not None else "none"
    say(f"validation: {counted}; backbone {trainer.spec.backbone}, {config.optimizer}, {config.precision}")
    for number, stage in enumerate(config.stages, start=1):
        rate = stage.rate or config.learning_rate
        say(f"stage {number}: {stage.layers} for {stage.epochs} epochs at {rate:g}")
    losses = trainer.dry_run()
    say("one step: " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))


def describe(row: dict[str, float], epochs: int) -> str:
    """One line about an epoch."""
    ap = "".join(f"  {name} {row[name]:.3f}" for name in ("box_ap50", "mask_ap50", "mask_ap") if name in row)
    if "loss" not in row:
        return f"the weights to start from{ap}"
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.3f}  masks {row['mrcnn_mask']:.3f}"
        f"  {row['images_per_second']:.1f} photos/s{ap}"
    )
