"""``blu data label``: pseudo-labels for photos of which only the classes are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blu_export.cli.common import ModelOption, command_app, progress, say, show_log, wrote
from blu_export.errors import DatasetError, UsageError

app = command_app()


@app.command()
def label(
    photos: Annotated[Path, typer.Argument(help="Folder of the photos.")],
    tags: Annotated[
        Path, typer.Option(help='JSON file, {"photo.jpg": ["hat", "shoes"], …}: all classes on each photo.')
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="COCO instances file.")] = Path("instances_pseudo.json"),
    model: ModelOption = None,
    keep: Annotated[float, typer.Option(min=0, max=1, help="Score from which a detection is an object.")] = 0.5,
    doubt: Annotated[
        float, typer.Option(min=0, max=1, help="Score from which it is a crowd region, which training ignores.")
    ] = 0.2,
) -> None:
    """Label photos with a model, corrected by tags, for data.more of blu train.

    Detections of classes that the tags do not name are left out, and so are photos on which a class
    of the tags is not found.

    \b
    blu data label tagged/images --tags tagged/tags.json --out tagged/instances_pseudo.json
    blu train --config mine.toml --set 'data.more=["tagged/instances_pseudo.json"]'
    """
    from blu_export.data.pseudo import pseudo_labels
    from blu_export.detector import load
    from blu_export.files import atomic_write

    if doubt > keep:
        raise UsageError(f"--doubt {doubt} is more than --keep {keep}.")
    show_log()
    known = read_tags(tags)
    detector = load(model)
    names = detector.spec.class_names
    if unknown := sorted({name for classes in known.values() for name in classes} - set(names[1:])):
        raise UsageError(
            f"The model has no class {', '.join(unknown)}.", f"Tag photos with its classes: {', '.join(names[1:])}."
        )
    folder = photos.resolve()
    files = [str(folder / name) for name in known]
    found = (photo.result() for photo in detector.stream(files))
    tagged = zip(files, known.values(), progress(found, len(files)), strict=True)
    content = pseudo_labels(tagged, names, keep, doubt)
    say(f"{len(content['images'])} of {len(files)} photos, {len(content['annotations'])} objects")
    with atomic_write(out) as temporary:
        temporary.write_text(json.dumps(content))
    wrote(out, f"blu data check {out}")


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
