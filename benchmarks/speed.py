"""``make benchmark``: every runtime side by side, beside what users would otherwise have.

    python -m benchmarks                        # three models, all peers, curves
    python -m benchmarks --quick                # the default model alone, under a minute
    python -m benchmarks --dataset data/photos  # average precision of the default model in the same table
    python -m benchmarks --tables               # the newest table into README.md and docs/performance.md

Weights of the big models are made in place, no download. Results go to benchmarks/results/: benchmark.json,
benchmark.md, benchmark.png and curves-MODEL.png; ``blu benchmark --compare`` takes two of the JSON files.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from benchmarks.models import (
    CACHE,
    DEFAULT,
    RESULTS,
    ROOT,
    SPECS,
    exports_folder,
    model_files,
    models_of,
    photo_640,
    say,
)
from benchmarks.peers import keras_on_square, peers_of
from blu_export.benchmark.candidates import Candidate, file_candidates
from blu_export.benchmark.report import headline, markdown, read_results, summary
from blu_export.benchmark.run import run_benchmark
from blu_export.benchmark.save import insert_table, save_results
from blu_export.benchmark.settings import QUICK, Settings
from blu_export.cli.common import wrote
from blu_export.errors import BluError

README, PERFORMANCE = ROOT / "README.md", ROOT / "docs" / "performance.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default model alone, few repeats, no slow peers")
    parser.add_argument("--models", default="", help=f"separated by commas; of {', '.join((DEFAULT, *SPECS))}")
    parser.add_argument("--repeats", type=int, help="timed calls of each candidate")
    parser.add_argument("--dataset", type=Path, help="annotated photos: int8 of the default model, average precision")
    parser.add_argument("--limit", type=int, help="use only the first N photos of --dataset")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--tables", action="store_true", help="only write the newest table into the documents")
    arguments = parser.parse_args()
    try:
        if arguments.tables:
            result = read_results(arguments.out / "benchmark.json")
            for document, table in ((README, headline(result)), (PERFORMANCE, summary(result))):
                insert_table(document, table)
                wrote(document)
            return
        run(arguments)
    except BluError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def run(arguments: argparse.Namespace) -> None:
    settings = QUICK if arguments.quick else Settings()
    if arguments.repeats:
        settings = replace(settings, repeats=arguments.repeats)
    models = models_of(arguments.models) or ([DEFAULT] if arguments.quick else [DEFAULT, *SPECS])
    photo = photo_640()
    candidates: list[Candidate] = []
    skipped: list[dict[str, str]] = []
    for model in models:
        try:
            candidates += candidates_of(model, photo, arguments.quick, arguments.dataset)
        except BluError as error:  # TensorFlow is not here to make it, or the default model is not
            say(f"skipped {model}: {error}")
            skipped.append({"name": model, "why": str(error)})

    def keep(result: dict[str, Any]) -> None:
        """After each model, so that nothing is lost when a later one fails."""
        save_results(result | {"skipped": result["skipped"] + skipped}, arguments.out, say)

    result = run_benchmark(candidates, photo, settings, say, keep)
    result["skipped"] += skipped
    if arguments.dataset:
        measure_accuracy(result, candidates, arguments.dataset, arguments.limit, settings.threads)
    print(markdown(result))
    for path in save_results(result, arguments.out, say):
        wrote(path)
    if not arguments.quick:
        from benchmarks.canvases import write

        write(models, settings.repeats, arguments.dataset, arguments.out)


def candidates_of(model: str, photo: Path, quick: bool, dataset: Path | None) -> list[Candidate]:
    """Keras first (the baseline), then other peers, then ours in every runtime and precision here."""
    weights, onnx = model_files(model, photo, dataset)
    baseline = [keras_on_square(model, weights)] if weights.is_file() else []
    peers = [] if quick or not weights.is_file() else peers_of(model, weights, exports_folder(CACHE), say)
    return [*baseline, *peers, *(replace(each, model=model) for each in file_candidates(onnx))]


def measure_accuracy(
    result: dict[str, Any], candidates: list[Candidate], folder: Path, limit: int | None, threads: int
) -> None:
    """Average precision of each candidate of the default model, into the notes of its row."""
    from blu_export.data.load import load_dataset
    from blu_export.evaluate.coco import Evaluator
    from blu_export.evaluate.detect import detect

    dataset = load_dataset(folder, "val", limit=limit)
    evaluator = Evaluator(dataset)
    rows = {(row["model"], row["runtime"], row["precision"]): row for row in result["rows"]}
    for candidate in candidates:
        row = rows.get((candidate.model, candidate.shown, candidate.precision))
        if candidate.model != DEFAULT or row is None or not (candidate.ours or candidate.file):
            continue  # a peer runs the same weights as the reference
        say(f"average precision on {len(dataset)} photos: {candidate.name}")
        detector = candidate.open(threads)
        with detector.runner:
            values = evaluator([found for photo in detect(detector, dataset) for found in photo]).values
        row["notes"] |= {name: values[name] for name in ("box_ap", "mask_ap")}
