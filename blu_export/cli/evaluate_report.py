"""What blu evaluate shows and writes: tables on the terminal, the folder of --out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blu_export.cli.common import printable, say, stdout, wrote
from blu_export.errors import DatasetError

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset
    from blu_export.evaluate.coco import Evaluation
    from blu_export.evaluate.results import Rows

WIDTH = 110
"""Columns of the tables off a terminal."""


def print_evaluation(evaluation: Evaluation, judged: str, dataset: str) -> None:
    """Average precision per kind, then per class, as tables on stdout."""
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    if not console.is_terminal:
        console.width = WIDTH
    objects = sum(evaluation.objects.values())
    console.print(Text(printable(f"{judged} on {dataset}")))
    console.print(f"{evaluation.photos} photos, {objects} objects, {evaluation.detections} detections\n")
    summary = Table(box=None, padding=(0, 1))
    titles = ("AP", "AP50", "AP75", "AP S", "AP M", "AP L", "AR 1", "AR 10", "AR 100", "AR S", "AR M", "AR L")
    summary.add_column("")
    for title in titles:
        summary.add_column(title, justify="right")
    for kind, scores in evaluation.scores.items():
        summary.add_row(kind, *map(decimals, scores.summary.values()))
    console.print(summary)
    stats = ("ap", "ap50", "ap75", "ar100")
    classes = Table(box=None, padding=(0, 1))
    classes.add_column("\nclass")
    classes.add_column("\nobjects", justify="right")
    for kind in evaluation.scores:
        for number, title in enumerate(("AP", "AP50", "AP75", "AR 100")):
            classes.add_column(f"{'' if number else kind}\n{title}", justify="right")
    classes.add_column("best F1\nfrom score", justify="right")
    classes.add_column("\nF1", justify="right")
    judged_by = evaluation.scores["mask" if "mask" in evaluation.scores else "box"]
    for name in evaluation.class_names[1:]:
        cells = [decimals(scores.classes[name][stat]) for scores in evaluation.scores.values() for stat in stats]
        best = judged_by.best_scores[name]
        cells += ["–", "–"] if best is None else [decimals(best.score), decimals(best.f1)]
        classes.add_row(Text(printable(name)), str(evaluation.objects[name]), *cells)
    console.print()
    console.print(classes)


def decimals(value: float) -> str:
    """Three decimals; a dash where there is no value."""
    return "–" if math.isnan(value) else f"{value:.3f}"


def write_report(
    folder: Path, report: dict[str, Any], evaluation: Evaluation, rows: Rows, dataset: Dataset, worst: int
) -> None:
    """Write evaluation.json, curves, the confusion matrix and pictures of the worst photos."""
    from blu_export.evaluate.confusion import write_confusion
    from blu_export.evaluate.files import draw_worst, plot_precision_recall
    from blu_export.files import atomic_write

    path = folder / "evaluation.json"
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    wrote(path)
    plot_precision_recall(folder / "precision_recall.png", evaluation)
    wrote(folder / "precision_recall.png")
    write_confusion(folder / "confusion.csv", folder / "confusion.png", evaluation.confusion, evaluation.class_names)
    wrote(folder / "confusion.csv")
    wrote(folder / "confusion.png")
    try:
        pictures = draw_worst(folder / "worst", evaluation, rows, dataset, worst)
    except DatasetError as error:  # results and annotations are enough for all else
        say(f"no pictures of the worst photos: {error}")
        return
    if pictures:
        say(f"wrote {len(pictures)} pictures of the worst photos to {folder / 'worst'}")
