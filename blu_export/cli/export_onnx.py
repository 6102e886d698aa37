"""``blu export onnx``: Keras weights to one ONNX file, checked against them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, printable, say, wrote
from blu_export.cli.options import ConfigOption, IgnoreLayersOption, JsonOption, SettingsOption
from blu_export.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset
    from blu_export.export.onnx import Exported

app = command_app()

DEFAULT_WEIGHTS = "garments.h5"


@app.command()
def export_onnx(
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights",
            "-w",
            help="Keras weights: .h5 or .keras, or a folder of checkpoints. Default: the embedded model.",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: NAME.onnx, here.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, one per line. Default: those in the file; COCO's where there are 81 classes."),
    ] = None,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    converter: Annotated[
        str,
        typer.Option(
            help="direct writes the layers from the tensors; tf2onnx traces the Keras model (slower, needs TensorFlow)."
        ),
    ] = "direct",
    fit: Annotated[
        bool,
        typer.Option(
            "--fit",
            help="Short for --canvas fit: a canvas for each photo, its sides padded to multiples of 64 only.",
        ),
    ] = False,
    canvas: Annotated[
        str | None,
        typer.Option(help="fit, square, or one canvas for all photos, such as 576x1024 for a camera's."),
    ] = None,
    target: Annotated[str, typer.Option(help="portable (ONNX Runtime, OpenVINO) or tensorrt.")] = "portable",
    opset: Annotated[int, typer.Option(help="Version of the ONNX operator set, 17 to 22.")] = 18,
    fp16: Annotated[bool, typer.Option("--fp16", help="Learned layers in half precision. Default: float32.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Learned layers in 8 bits, with ranges from --calibration photos.")
    ] = False,
    calibration: Annotated[
        list[str] | None,
        typer.Option(
            help="Photos, a folder or a glob to measure fp16 and int8 on, 32 or more for int8. "
            "Default: those of --images."
        ),
    ] = None,
    calibration_method: Annotated[str, typer.Option(help="int8 ranges: minmax, percentile or entropy.")] = "minmax",
    compress_to_fp16: Annotated[
        bool,
        typer.Option("--compress-to-fp16", help="Store the weights in 16 bits: half the size, computed in float32."),
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare the file with the Keras model.")] = True,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            help="Photos, a folder or a glob to compare on, or one annotated data set. Default: 8 of those for "
            "calibration, or the demo photo.",
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor and what became of it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Convert Keras weights to an ONNX file that finds the same, and prove it.

    Reads Matterport's .h5 layout, other Keras files of a Mask R-CNN, and what blu train writes. The
    backbone, the number of classes and the sizes of layers follow from the tensors; what they do not
    say comes from --config, or is assumed and listed. Where TensorFlow is installed, the file is
    compared with the Keras model before it gets its name: when they differ too much, the exit code is
    1 and the file is NAME.failed.onnx. int8 needs --calibration with 32 or more photos of what the
    model is for.

    \b
    blu export onnx --int8 --calibration photos/
    blu export onnx --weights mask_rcnn_coco.h5
    blu export onnx --weights mine.h5 --config my_config.py
    blu export onnx --weights shapes.h5 --classes names.txt --set image_min_dim=512 --set image_max_dim=512
    blu export onnx --weights mask_rcnn_coco.h5 --fit --images coco/
    blu export onnx --weights runs/garments/best.h5 --int8 --calibration photos/ -o garments.int8.onnx
    """
    from blu_export.embedded import embedded
    from blu_export.export.onnx import export_onnx as export
    from blu_export.export.options import ExportOptions
    from blu_export.spec import canvas_settings

    if fp16 and int8:
        raise UsageError("A file has one precision.", "Give --fp16 or --int8.")
    precision = "fp16" if fp16 else "int8" if int8 else "float32"
    source = weights or embedded(DEFAULT_WEIGHTS)
    if fit and canvas not in (None, "fit"):
        raise UsageError("A model has one canvas.", "Give --fit or --canvas.")
    chosen = "fit" if fit else canvas
    settings = [*(settings or []), *(canvas_settings(chosen) if chosen else ())]
    photos, annotated = compared_on(images)
    options = ExportOptions(
        class_names=None if classes is None else read_class_names(classes),
        settings=settings,
        ignore_layers=ignore_layers or [],
        config=config,
        converter=converter,
        target=target,
        opset=opset,
        precision=precision,
        method=calibration_method,
        compress_to_fp16=compress_to_fp16,
        verify=verify,
    )
    done = export(
        source,
        output or Path(default_name(source, target, precision, "fit" if fit else canvas or "")),
        options,
        calibration=_photos(calibration) or [],
        images=photos,
        annotated=annotated,
        tell=say,
    )
    if tensors:
        for line in tensor_lines(done):
            say(line)
    elif details := done.weights.details():
        say(details)
    print(json.dumps(to_json(done), indent=2) if as_json else printable(str(done.path)))
    wrote(done.path, next_command(done))


def default_name(weights: Path, target: str, precision: str, canvas: str = "") -> str:
    """``garments.onnx``; ``garments.fit.int8.tensorrt.onnx`` where it is not the usual form."""
    stem = weights.name.removesuffix(weights.suffix).removesuffix(".weights")
    parts = [stem, canvas, precision if precision != "float32" else "", target if target != "portable" else "", "onnx"]
    return ".".join(filter(None, parts))


def compared_on(images: list[str] | None) -> tuple[list[Any] | None, Dataset | None]:
    """The photos that ``--images`` names; of an annotated data set some of them, and the data set."""
    from blu_export.data.load import has_split, load_dataset
    from blu_export.quantize.precision import spread

    if images is None or len(images) != 1 or not (images[0].endswith(".json") or has_split(images[0], "val")):
        return _photos(images), None
    dataset = load_dataset(images[0], "val")
    return [dataset.load_image(index) for index in spread(range(len(dataset)))], dataset


def read_class_names(path: Path) -> list[str]:
    """Names, one per line; empty lines do not count.

    Raises:
        ModelFileError: the file cannot be read, or holds no names.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ModelFileError(f"The class names {path} cannot be read: {why}.", "Write one name per line.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise ModelFileError(f"The file of class names {path} is empty.", "Write one name per line.")
    return names


def tensor_lines(done: Exported) -> list[str]:
    """Every tensor of the model and of the file. Others than these are errors before this."""
    report = done.weights
    return [
        *(f"  loaded: {name}" for name in report.loaded),
        *(f"  left over: {name}" for name in report.leftover),
    ]


def to_json(done: Exported) -> dict[str, Any]:
    """The result for machines."""
    from blu_export.files import sha256_of

    return {
        "path": str(done.path),
        "size": done.path.stat().st_size,
        "sha256": sha256_of(done.path),
        "target": done.target,
        "precision": done.precision,
        "opset": done.opset,
        "nodes": done.nodes,
        "spec": json.loads(done.spec.to_json()),
        "tensors": {
            "loaded": list(done.weights.loaded),
            "missing": list(done.weights.missing),
            "unexpected": list(done.weights.unexpected),
            "leftover": list(done.weights.leftover),
            "wrong_shape": [list(entry) for entry in done.weights.wrong_shape],
        },
        "fallback_layers": done.fallback_layers,
        "parity": None if done.parity is None else done.parity.to_json(),
        "seconds": {name: round(value, 3) for name, value in done.seconds.items()},
    }


def next_command(done: Exported) -> str:
    """What people do with such a file."""
    if done.target == "tensorrt":
        return f"blu build-engine {done.path} --{ {'float32': 'fp16'}.get(done.precision, done.precision) }"
    return f"blu infer street.jpg --model {done.path}"


def _photos(arguments: list[str] | None) -> list[Path] | None:
    from blu_export.sources import find_images

    if not arguments:
        return None
    if not (found := find_images(arguments)):
        raise UsageError(f"There are no photos in {', '.join(arguments)}.")
    return found
