"""Canvases that fit beside the square one, by shape of the photo.

    python -m benchmarks canvases                              # all models: minutes
    python -m benchmarks canvases --models default --repeats 5
    python -m benchmarks canvases --tables                     # the newest table into docs/performance.md

The same subnetworks on both canvases, end to end on a JPEG photo, taking turns; the Keras model on the square canvas
takes part beside the first runtime, and OpenVINO's bf16 where the processor has the units for it. Results go to
benchmarks/results/canvases.json and canvases.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import cv2
import numpy as np

from benchmarks.models import DEFAULT, RESULTS, ROOT, SPECS, model_files, models_of, photo_640, say
from benchmarks.peers import keras_on_square
from blu_export.benchmark.curves import encode
from blu_export.benchmark.machine import describe
from blu_export.benchmark.recompose import recompose
from blu_export.benchmark.save import insert_table
from blu_export.benchmark.timing import settled, take_turns
from blu_export.cli.common import wrote
from blu_export.detector import Detector
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.errors import BluError
from blu_export.files import atomic_write
from blu_export.image import decode
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.runtime.openvino import OpenVinoRunner, has_bf16
from blu_export.runtime.tuning import precision_path

SHAPES = {"4:3": (480, 640), "16:9": (720, 1280), "2:3": (960, 640)}
"""Photos, (height, width)."""
RUNTIMES: dict[str, Callable[..., Runner]] = {
    "onnxruntime": partial(OnnxRuntimeRunner, store=True),
    "openvino": OpenVinoRunner,
}
MODELS = (DEFAULT, *SPECS)
PERFORMANCE = ROOT / "docs" / "performance.md"
MARKS = "<!-- canvases table: made by python -m benchmarks canvases --tables -->", "<!-- end of canvases table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each candidate")
    parser.add_argument("--dataset", type=Path, help="annotated photos: int8 of the default model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--tables", action="store_true", help="only write the newest table into docs/performance.md")
    arguments = parser.parse_args()
    if arguments.tables:
        result = json.loads((arguments.out / "canvases.json").read_text(encoding="utf-8"))
        insert_table(PERFORMANCE, table(result), MARKS)
        wrote(PERFORMANCE)
        return
    write(models_of(arguments.models), arguments.repeats, arguments.dataset, arguments.out)


def write(models: Sequence[str], repeats: int, dataset: Path | None, folder: Path) -> None:
    """Measure the models, write canvases.json and canvases.md into ``folder``, and print the table.

    Rows of other models stay when this processor measured them.
    """
    result: dict[str, Any] = {"machine": describe(), "rows": []}
    path = folder / "canvases.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["machine"]["processor"] == result["machine"]["processor"]:
            result["rows"] = [row for row in before["rows"] if row["model"] not in models]
    for model in models:
        try:
            result["rows"] += list(measure(model, repeats, dataset))
        except BluError as error:  # TensorFlow is not here to make it
            say(f"skipped {model}: {error}")
    for name, text in (("canvases.json", json.dumps(result, indent=1)), ("canvases.md", table(result))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        wrote(folder / name)
    print(table(result))


def measure(model: str, repeats: int, dataset: Path | None) -> Iterator[dict[str, Any]]:
    """A row for each shape of photo and each kind of runtime: seconds of every round, objects found, by canvas.

    The two canvases of one kind take turns, and nothing else is loaded meanwhile: of a dozen models that wait, each
    would find the processor's caches, and on some machines the memory of its weights, given to others. Keras takes part
    beside the first kind.
    """
    weights, onnx = model_files(model, photo_640(), dataset)
    threads = usable_cores()
    photo = decode(embedded(DEMO_PHOTO))
    for index, (name, (path, open_it)) in enumerate(_ours(onnx).items()):
        say(f"loading {model} {name}")
        with ExitStack() as opened:
            detectors = {}
            for canvas in ("square", "fit"):
                runner = open_it(recompose(path, image_resize_mode=canvas), "cpu", threads)
                detectors[canvas] = Detector(opened.enter_context(runner))
            if index == 0 and weights.is_file():
                detectors["keras"] = keras_on_square(model, weights).open(threads)
            for shape, (height, width) in SHAPES.items():
                encoded = encode(np.asarray(cv2.resize(photo, (width, height)), np.uint8))

                def once(detector: Detector, encoded: bytes = encoded) -> Callable[[], object]:
                    return lambda: detector(encoded)

                say(f"{model} {name}, {shape}")
                for detector in detectors.values():
                    settled(detector, encoded)
                rounds = take_turns({canvas: once(each) for canvas, each in detectors.items()}, repeats, 2)
                yield {
                    "model": model,
                    "shape": shape,
                    "photo": f"{width}x{height}",
                    "runtime": name,
                    "spread": rounds.spread,
                    "seconds": rounds.seconds,
                    "found": {canvas: len(each(encoded)) for canvas, each in detectors.items()},
                }


def _ours(onnx: Path) -> dict[str, tuple[Path, Callable[..., Runner]]]:
    """All that this machine has: "runtime precision" -> the file and what opens it."""
    found: dict[str, tuple[Path, Callable[..., Runner]]] = {}
    for precision, path in (("float32", onnx), ("int8", precision_path(onnx, "int8"))):
        if path.is_file():
            found |= {f"{runtime} {precision}": (path, kind) for runtime, kind in RUNTIMES.items()}
    if has_bf16():
        found["openvino bf16"] = onnx, partial(OpenVinoRunner, bf16=True)
    return found


def table(result: dict[str, Any]) -> str:
    """Markdown: medians; fit over square is the median over the rounds, fit over Keras the ratio of medians."""
    keras = {
        (row["model"], row["shape"]): float(np.median(row["seconds"]["keras"]))
        for row in result["rows"]
        if "keras" in row["seconds"]
    }
    lines = [
        "| model | photo | runtime | square | fit | fit over square | fit over Keras | objects | spread |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    # Stable: shapes of one model together, runtimes in the order they were measured.
    rows = sorted(result["rows"], key=lambda row: (MODELS.index(row["model"]), list(SHAPES).index(row["shape"])))
    for row in rows:
        square, fit = (np.asarray(row["seconds"][canvas]) for canvas in ("square", "fit"))
        beside = keras.get((row["model"], row["shape"]))
        over_keras = f"{beside / np.median(fit):.2f}×" if beside else "–"
        lines.append(
            f"| {row['model']} | {row['photo']} | {row['runtime']} | {1000 * np.median(square):.0f} ms | "
            f"{1000 * np.median(fit):.0f} ms | {np.median(square / fit):.2f}× | {over_keras} | "
            f"{row['found']['square']}, {row['found']['fit']} | {row['spread']:.2f} |"
        )
    lines += ["", f"{result['machine']['processor']}; spread: p90 over p10 of a fixed piece of work meanwhile."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
