"""OpenVINO with dynamic sizes beside OpenVINO compiled for one size, and ONNX Runtime: the network alone.

    python -m benchmarks sizes --models default --repeats 21

What ``runtime.openvino`` and ``runtime.frequent`` decide rests on this: the same subnetworks on a canvas that follows
the photo and on a fixed one of the same size, taking turns, and the memory that the fixed one takes. Prints a table.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.canvases import MODELS
from benchmarks.memory import resident_mib
from benchmarks.models import DEFAULT, model_files, models_of, photo_640, say
from blu_export.benchmark.recompose import recompose
from blu_export.benchmark.timing import take_turns
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.image import decode, mold
from blu_export.runtime.base import Runner
from blu_export.runtime.cpu import usable_cores
from blu_export.runtime.frequent import FREQUENT
from blu_export.runtime.onnx_file import spec_of
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.runtime.openvino import OpenVinoRunner, has_bf16
from blu_export.runtime.tuning import precision_path

WARM = 3
CANVASES = {DEFAULT: [(448, 320), (448, 448)], "resnet50-512": [(512, 384)], "resnet101-1024": [(1024, 768)]}
"""By model, (height, width)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="separated by commas")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each candidate")
    parser.add_argument("--dataset", type=Path, help="annotated photos: int8 of the default model")
    arguments = parser.parse_args()
    if arguments.repeats + WARM >= FREQUENT:
        parser.error(f"--repeats must be below {FREQUENT - WARM}: a size is compiled when it came {FREQUENT} times")
    models = models_of(arguments.models)
    print("| model | canvas | precision | dynamic | fixed | fixed over dynamic | memory | onnxruntime | spread |")
    print("|---|---|---|---|---|---|---|---|---|")
    for model in models:
        _, onnx = model_files(model, photo_640(), arguments.dataset)
        for canvas in CANVASES[model]:
            for precision in ("float32", "int8", "bf16"):
                path = precision_path(onnx, "int8") if precision == "int8" else onnx
                if path.is_file() and (precision != "bf16" or has_bf16()):
                    say(f"{model} {precision} on {canvas[0]}x{canvas[1]}")
                    print(row(model, path, canvas, precision, arguments.repeats), flush=True)


def row(model: str, path: Path, canvas: tuple[int, int], precision: str, repeats: int) -> str:
    """Measure one model on one canvas; a line of the table."""
    follows = recompose(path, image_resize_mode="fit")
    fixed = recompose(path, image_resize_mode="rectangle", image_canvas=canvas)
    threads = usable_cores()
    open_it = partial(OpenVinoRunner, device="cpu", threads=threads, bf16=precision == "bf16")
    with ExitStack() as opened:
        runners: dict[str, Runner] = {"dynamic": opened.enter_context(open_it(follows))}
        molded = mold(decode(embedded(DEMO_PHOTO)), spec_of(fixed, "fixed"))
        inputs = molded.canvas[None], molded.window[None]
        runners["dynamic"].run(*inputs)
        before = resident_mib()
        runners["fixed"] = opened.enter_context(open_it(fixed))
        runners["fixed"].run(*inputs)
        memory = resident_mib() - before
        if precision != "bf16":
            runners["onnxruntime"] = opened.enter_context(OnnxRuntimeRunner(fixed, "cpu", threads))
        turns = take_turns({name: partial(runner.run, *inputs) for name, runner in runners.items()}, repeats, WARM)
    seconds = {name: np.asarray(times) for name, times in turns.seconds.items()}
    ms = {name: f"{1000 * np.median(times):.1f} ms" for name, times in seconds.items()}
    ratio = np.median(seconds["fixed"] / seconds["dynamic"])
    return (
        f"| {model} | {canvas[0]}x{canvas[1]} | {precision} | {ms['dynamic']} | {ms['fixed']} | {ratio:.2f} | "
        f"{memory:.0f} MB | {ms.get('onnxruntime', '–')} | {turns.spread:.2f} |"
    )


if __name__ == "__main__":
    main()
