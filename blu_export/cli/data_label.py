"""``blu data label``: pseudo-labels for photos of which the classes, or the places of objects, are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, progress, say, show_log, wrote
from blu_export.cli.options import ModelOption
from blu_export.errors import DatasetError, UsageError

if TYPE_CHECKING:
    from blu_export.data.dataset import Record
    from blu_export.detector import Detector

app = command_app()


@app.command()
def label(
    photos: Annotated[Path, typer.Argument(help="Folder of the photos.")],
    tags: Annotated[
        Path | None, typer.Option(help='JSON file, {"photo.jpg": ["hat", "shoes"], …}: all classes on each photo.')
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(help="COCO file whose crowds (iscrowd) are the regions where objects may be.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="COCO instances file.")] = Path("instances_pseudo.json"),
    model: ModelOption = None,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Score from which a detection is an object.")] = 0.5,
    doubt: Annotated[
        float,
        typer.Option(min=0, max=1, help="Score from which it is a crowd region, which training ignores; with --tags."),
    ] = 0.2,
) -> None:
    """Label photos with a model, corrected by tags or by regions, for data.more of blu train.

    With --tags, detections of classes that the tags do not name are left out, and so are photos on which a class
    of the tags is not found. With --regions, detections of which at least 80 % lie in the regions become objects,
    the rest of the regions stays crowd, and photos without such a detection are left out.

    \b
    blu data label tagged/images --tags tagged/tags.json --out tagged/instances_pseudo.json
    blu data label street/images --regions street/persons.json --out street/instances_pseudo.json
    blu train --config mine.toml --set 'data.more=["tagged/instances_pseudo.json"]'
    """
    from blu_export.detector import load
    from blu_export.files import atomic_write

    if (tags is None) == (regions is None):
        raise UsageError(
            "Labels need one of --tags and --regions." if tags is None else "--tags and --regions exclude each other.",
            "Give --tags TAGS.json, or --regions INSTANCES.json.",
        )
    if tags is not None and doubt > keep:
        raise UsageError(f"--doubt {doubt} is more than --keep {keep}.")
    show_log()
    if tags is not None:
        known = read_tags(tags)
        detector = load(model)
        content, count = _label_tagged(detector, photos, known, (keep, doubt)), len(known)
    else:
        assert regions is not None
        detector = load(model)
        records = read_regions(regions, photos, detector.spec.class_names)
        content, count = _label_regions(detector, records, keep), len(records)
    say(f"{len(content['images'])} of {count} photos, {_count_objects(content)}")
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content))
    wrote(out, f"blu data check {out}")


def _label_tagged(
    detector: Detector, photos: Path, known: dict[str, list[str]], scores: tuple[float, float]
) -> dict[str, Any]:
    from blu_export.data.pseudo import pseudo_labels

    names = detector.spec.class_names
    if unknown := sorted({name for classes in known.values() for name in classes} - set(names[1:])):
        raise UsageError(
            f"The model has no class {', '.join(unknown)}.", f"Tag photos with its classes: {', '.join(names[1:])}."
        )
    folder = photos.resolve()
    files = [str(folder / name) for name in known]
    found = (photo.result() for photo in detector.stream(files))
    tagged = zip(files, known.values(), progress(found, len(files)), strict=True)
    return pseudo_labels(tagged, names, *scores)


def _label_regions(detector: Detector, records: list[Record], keep: float) -> dict[str, Any]:
    from blu_export.data.pseudo import region_labels

    found = (photo.result() for photo in detector.stream([record.uri for record in records]))
    return region_labels(zip(records, progress(found, len(records)), strict=True), detector.spec.class_names, keep)


def _count_objects(content: dict[str, Any]) -> str:
    crowds = sum(row["iscrowd"] for row in content["annotations"])
    return f"{len(content['annotations']) - crowds} objects, {crowds} crowd regions"


def read_regions(path: Path, photos: Path, class_names: tuple[str, ...]) -> list[Record]:
    """The photos of a COCO file with only their crowds, which get the model's classes.

    A region of a class that the model lacks counts as its first class: training does not ask of which class a crowd is.

    Raises:
        DatasetError: the file cannot be read, has objects that are not crowds, or no crowds at all.
    """
    from dataclasses import replace

    from blu_export.data.classes import match_names
    from blu_export.data.formats.coco import load_coco
    from blu_export.data.options import ReadOptions

    dataset = load_coco(path, photos, options=ReadOptions(keep_empty_classes=True))
    ids = [index or 1 for index in match_names(dataset.class_names, class_names)]
    objects = [record.uri for record in dataset.records if any(not each.iscrowd for each in record.annotations)]
    if objects:
        raise DatasetError(
            f"{path} has objects without iscrowd, on {objects[0]} for example: they are not regions.",
            "Give a file with only regions, each with iscrowd 1.",
        )
    marked = [record for record in dataset.records if record.annotations]
    if not marked:
        raise DatasetError(f"{path} has no regions.", "Mark where objects may be, with iscrowd 1.")
    return [
        replace(record, annotations=tuple(replace(each, category=ids[each.category]) for each in record.annotations))
        for record in marked
    ]


def read_tags(path: Path) -> dict[str, list[str]]:
    """The classes of each photo by its file name.

    Raises:
        DatasetError: the file cannot be read, or is not such a file.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"The tags {path} cannot be read: {error}.", "Give a JSON file.") from error
    fix = 'Write {"photo.jpg": ["hat", "shoes"], …}.'
    if not isinstance(content, dict):
        raise DatasetError(f"The tags {path} are not a JSON object.", fix)
    classes: dict[str, list[str]] = {}
    for name, tags in content.items():
        named = tags["classes"] if isinstance(tags, dict) and "classes" in tags else tags
        if not (isinstance(named, list) and all(isinstance(tag, str) for tag in named)):
            raise DatasetError(f"{path} does not name the classes of {name}.", fix)
        classes[name] = named
    return classes
