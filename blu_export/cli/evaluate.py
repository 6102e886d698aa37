"""``blu evaluate``: COCO average precision of a model, or of a file of results."""

from __future__ import annotations

import json
import math
import shlex
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from blu_export.cli.common import command_app, progress, say, show_log, wrote
from blu_export.cli.data_check import read_options
from blu_export.cli.evaluate_report import decimals, print_evaluation, write_report
from blu_export.cli.options import (
    BatchOption,
    BitsOption,
    CachedOption,
    ConfigOption,
    DeviceOption,
    ExifOption,
    IgnoreLayersOption,
    JsonOption,
    MaxPixelsOption,
    NmsOption,
    PrecisionOption,
    RuntimeOption,
    SettingsOption,
    StrictOption,
    ThreadsOption,
    runner_options,
)
from blu_export.errors import EXIT_BAD_INPUT, BluError, CheckFailedError, DatasetError, ModelFileError, UsageError
from blu_export.runtime import RUNTIMES_BY_SUFFIX, RunnerOptions

if TYPE_CHECKING:
    from blu_export.data.dataset import Dataset
    from blu_export.detector import Detector
    from blu_export.evaluate.coco import Evaluation, Expectation
    from blu_export.evaluate.results import Rows

app = command_app()

USUAL_SPLIT = "val"
"""Judged where none is named: the photos that the model has not seen."""
ELSEWHERE = "Where the photos lie elsewhere, write: blu evaluate [MODEL] FOLDER --annotations FILE.json"
USUAL_MIN_CONFIDENCE = 0.05
"""Detections that a model drops above this score would have counted."""
FAILURES_NAMED = 5
"""Photos that cannot be read which are named; evaluation.json and --json name all."""


@app.command()
def evaluate(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] [DATASET]",
            help="A model file, or a COCO results file (.json); default: the embedded model. Then the data set: a "
            "folder, a COCO instances file, or a bucket (s3://…).",
        ),
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="COCO instances file; DATASET is then the folder of its photos.")
    ] = None,
    results: Annotated[Path | None, typer.Option(help="Judge this COCO results file instead of a model.")] = None,
    split: Annotated[str, typer.Option(help="Which part of a data set folder: val or train.")] = USUAL_SPLIT,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first N photos.")] = None,
    expect: Annotated[
        list[str] | None,
        typer.Option(help='Exit with 1 unless it holds, e.g. "mask_ap>=0.30"; may be given several times.'),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the detections as a COCO results file.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write plots, the worst photos and evaluation.json here.")
    ] = None,
    max_dets: Annotated[
        int, typer.Option(min=1, help="Best detections of a photo that count; COCO's own numbers need 100.")
    ] = 100,
    nms: NmsOption = None,
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos.")] = None,
    strict: StrictOption = False,
    exif: ExifOption = "auto",
    max_pixels: MaxPixelsOption = None,
    bits: BitsOption = None,
    worst: Annotated[int, typer.Option(min=0, help="How many of the worst photos --out shows.")] = 12,
    cached: CachedOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    batch: BatchOption = 1,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "file",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Measure COCO average precision of boxes and masks, per class and per size.

    Classes of model and data set are matched by name.

    \b
    blu evaluate data/garments
    blu evaluate coco.onnx coco/ --limit 500 --expect "mask_ap>=0.30" --out report
    blu evaluate engine.engine photos/ --annotations instances_val.json --save results.json
    blu evaluate --results results.json --annotations instances_val.json
    """
    from blu_export.data.load import SPLITS, load_dataset
    from blu_export.evaluate.coco import Evaluator, Expectation
    from blu_export.evaluate.results import nms_across_classes, read_results, write_results

    if split not in SPLITS:
        raise UsageError(f"There is no split '{split}'.", f"Splits are {', '.join(SPLITS)}.")
    wanted = [Expectation.parse(text) for text in expect or ()]
    asked = Request.of(arguments or [], annotations, results)
    show_log()
    detector, judged = None, f"results {asked.results}"
    if asked.results is None:
        detector, judged = _load(
            asked.model,
            runner_options(runtime, precision, device, threads, settings, config, ignore_layers),
        )
    read = limit if asked.results is None else None  # results may be of photos beyond the limit
    # Classes without objects count for nothing, but results name their ids.
    options = read_options(
        images or asked.photos, read, strict, exif, keep_empty_classes=True, max_pixels=max_pixels, bits=bits
    )
    whole = load_dataset(asked.dataset, split, cached=cached, progress=progress, options=options)
    if detector is not None:
        whole = whole.with_channels(detector.spec.image_channel_count)
    dataset = whole.limited(limit)
    failures: dict[int, BluError] = {}
    if detector is not None:
        rows, failures = _detect(detector, dataset, batch)
        dataset = _without(dataset, failures)
    else:
        assert asked.results is not None
        photos = {record.image_id for record in dataset.records}
        rows, left_out = read_results(asked.results, whole)
        rows = [row for row in rows if row["image_id"] in photos]
        if left_out:
            say(f"{len(left_out)} results are left out, the first: {left_out[0]}")
    if nms is not None:
        rows = nms_across_classes(rows, nms)
    evaluation = Evaluator(dataset, max_dets)(rows)
    if evaluation.crowded:
        say(
            f"note: {evaluation.crowded} photos have more than {max_dets} objects, of which the best {max_dets} "
            f"detections count; --max-dets counts more"
        )
    report = {
        "judged": judged,
        "dataset": dataset.name,
        **evaluation.to_json(),
        **_verdict(wanted, evaluation),
        "photos_left_out": {whole.records[index].uri: error.what for index, error in failures.items()},
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print_evaluation(evaluation, judged, dataset.name)
    if save is not None:
        write_results(save, rows, dataset)
        wrote(save, _again(save, asked.dataset, split, limit))
    if out is not None:
        write_report(out, report, evaluation, rows, dataset, worst)
    if failures:
        say(f"{len(failures)} of {len(failures) + len(dataset)} photos are left out: they cannot be read")
        raise typer.Exit(EXIT_BAD_INPUT)
    _require(wanted, evaluation)


@dataclass(frozen=True)
class Request:
    """What the arguments mean."""

    dataset: str
    photos: str | None = None
    """Folder of the photos, where it is named."""
    model: Path | None = None
    """None: the embedded one."""
    results: Path | None = None

    @classmethod
    def of(cls, arguments: list[str], annotations: Path | None, results: Path | None) -> Request:
        """Sort out ``[MODEL or RESULTS] [DATASET]``.

        Raises:
            UsageError: something is absent, or there is too much.
        """
        words = list(arguments)
        model = None
        if results is None and words and _is_judged(words, annotations):
            first = Path(words.pop(0))
            model, results = (None, first) if first.suffix.lower() == ".json" else (first, None)
        if len(words) > 1:
            kind = ModelFileError if Path(words[0]).is_file() else UsageError
            raise kind(f"'{words[0]}' is not a model or results file.", "Write: blu evaluate MODEL DATASET")
        if annotations is not None:
            return cls(str(annotations), words[0] if words else None, model, results)
        if not words:
            raise UsageError("There is no data set to evaluate on.", "Write: blu evaluate [MODEL] DATASET")
        return cls(words[0], model=model, results=results)


def _is_judged(words: list[str], annotations: Path | None) -> bool:
    """Whether the first word is what is judged: a model file, or a results file in front of the truth."""
    suffix = Path(words[0]).suffix.lower()
    return suffix in RUNTIMES_BY_SUFFIX or (suffix == ".json" and (len(words) > 1 or annotations is not None))


def _load(model: Path | None, options: RunnerOptions) -> tuple[Detector, str]:
    """The detector, and its description."""
    from blu_export.detector import Detector
    from blu_export.embedded import embedded
    from blu_export.parity.verify import describe
    from blu_export.runtime import load_runner

    path = model or embedded()
    if any(setting.startswith("data.") for setting in options.settings):
        raise UsageError("--set is for settings of the model, not of the data.", ELSEWHERE)
    detector = Detector(load_runner(path, options))
    least = detector.spec.detection_min_confidence
    if least > USUAL_MIN_CONFIDENCE:
        say(f"note: this model drops detections below score {least:g}, which lowers its average precision")
    return detector, f"{path}, {describe(detector.runner)}"


def _detect(detector: Detector, dataset: Dataset, batch: int) -> tuple[Rows, dict[int, BluError]]:
    """The results, and the photos (by index) that could not be looked at.

    Raises:
        DatasetError: none could.
    """
    from blu_export.evaluate.detect import detect

    failures: dict[int, BluError] = {}

    def failed(index: int, error: BluError) -> None:
        failures[index] = error
        if len(failures) <= FAILURES_NAMED:
            say(f"left out: {error.what}")

    with detector.runner:
        found = detect(detector, dataset, batch, failed)
        rows = list(chain.from_iterable(progress(found, len(dataset))))
    if len(failures) == len(dataset) and failures:
        missing = [problem for problem in dataset.problems if problem.kind == "missing photo"]
        raise DatasetError(
            f"None of the {len(dataset)} photos can be read, "
            f"{missing[0].detail if missing else failures[0].what.rstrip('.')}.",
            ELSEWHERE if missing else failures[0].fix or "Run 'blu data check' on the data set.",
        )
    return rows, failures


def _without(dataset: Dataset, failures: dict[int, BluError]) -> Dataset:
    """The data set without the photos of these indices."""
    kept = tuple(record for index, record in enumerate(dataset.records) if index not in failures)
    return replace(dataset, records=kept)


def _again(results: Path, dataset: str, split: str, limit: int | None) -> str:
    """The command that judges saved results on the same photos."""
    words = ["blu", "evaluate", "--results", str(results), dataset]
    if split != USUAL_SPLIT:
        words += ["--split", split]
    if limit is not None:
        words += ["--limit", str(limit)]
    return shlex.join(words)


def _verdict(wanted: list[Expectation], evaluation: Evaluation) -> dict[str, Any]:
    checks = [
        {"expected": str(each), "value": _null(evaluation.values, each.name), "passed": each.holds(evaluation.values)}
        for each in wanted
    ]
    return {"expectations": checks, "passed": all(check["passed"] for check in checks)}


def _null(values: dict[str, float], name: str) -> float | None:
    value = values.get(name, math.nan)
    return None if math.isnan(value) else value


def _require(wanted: list[Expectation], evaluation: Evaluation) -> None:
    values = evaluation.values
    for each in wanted:
        say(f"{'✓' if each.holds(values) else '✗'} {each}: {decimals(values.get(each.name, math.nan))}")
    if failed := [str(each) for each in wanted if not each.holds(values)]:
        raise CheckFailedError(f"The model does not reach {', '.join(failed)}.")
