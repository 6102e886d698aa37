"""``make benchmark``: every runtime side by side, from weights made in place, no download.

    python benchmarks/run.py [--quick] [--models default,resnet50-512,resnet101-1024] [--repeats N]
    python benchmarks/run.py --readme     # write the newest table into README.md

Results go to benchmarks/results/: benchmark.json, benchmark.md, benchmark.png, curves.png.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from blu_export.detector import Detector  # noqa: E402
from blu_export.export.onnx import export_onnx  # noqa: E402
from naive import NaiveRunner, export_naive  # noqa: E402

from blu_export.measure.benchmark import Candidate, Settings, run_benchmark  # noqa: E402
from blu_export.measure.report import markdown, plot_bars, plot_curves  # noqa: E402
from blu_export.measure.timing import take_turns  # noqa: E402
from blu_export.runtime import load_runner  # noqa: E402
from blu_export.runtime.base import Runner  # noqa: E402
from models import SPECS, write_weights  # noqa: E402

CACHE = ROOT / "benchmarks" / "cache"
RESULTS = ROOT / "benchmarks" / "results"
PHOTO_SIZE = (640, 480)
DEFAULT = "default"
_README_MARK = "<!-- benchmark table: make benchmark -->"
_README_END = "<!-- end of benchmark table -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the default model alone, few repeats: under a minute")
    parser.add_argument("--models", default=",".join((DEFAULT, *SPECS)), help="which models, separated by commas")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--readme", action="store_true", help="only write the newest table into README.md")
    arguments = parser.parse_args()
    if arguments.readme:
        update_readme()
        return
    models = [DEFAULT] if arguments.quick else arguments.models.split(",")
    settings = Settings(repeats=5, batches=(1,), cold=False) if arguments.quick else Settings(repeats=arguments.repeats)
    photo = photo_640()
    candidates = [c for model in models for c in candidates_of(model, photo, settings, quick=arguments.quick)]
    result = run_benchmark(candidates, photo, settings, say)
    if not arguments.quick:
        result["curves"] = curves(model_files(models[-1], photo)[1], settings.threads)
    write(result)
    print(markdown(result))


def say(message: str) -> None:
    """One line of progress on stderr."""
    print(message, file=sys.stderr, flush=True)


def photo_640() -> Path:
    """The demo photo at 640×480, as a JPEG file in the cache."""
    from PIL import Image

    path = CACHE / "photo-640x480.jpg"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with Image.open(ROOT / "models" / "demo" / "astronaut.jpg") as image:
            width = image.width
            cropped = image.convert("RGB").crop((0, 0, width, width * PHOTO_SIZE[1] // PHOTO_SIZE[0]))
            cropped.resize(PHOTO_SIZE).save(path, quality=92)
    return path


def model_files(model: str, photo: Path) -> tuple[Path, Path]:
    """(weights, portable ONNX file) of a model; made on first use."""
    if model == DEFAULT:
        return ROOT / "models" / "garments.h5", ROOT / "models" / "garments.onnx"
    from blu_export.image import decode

    weights = write_weights(model, decode(photo), CACHE)
    onnx = CACHE / f"{model}.onnx"
    if not onnx.exists():
        say(f"exporting {model}")
        spec = SPECS[model]
        settings = [f"image_min_dim={spec.image_min_dim}", f"image_max_dim={spec.image_max_dim}"]
        export_onnx(weights, onnx, settings=settings, verify=False)
    return weights, onnx


def candidates_of(model: str, photo: Path, settings: Settings, quick: bool) -> list[Candidate]:
    """Keras first (the baseline), then the naive conversion, then ours in every runtime and precision here."""
    weights, onnx = model_files(model, photo)
    threads = settings.threads
    found = [
        Candidate(model, "keras tf.function", "float32", lambda: Detector(load_runner(weights)), ours=False),
    ]
    if not quick:
        found.append(Candidate(model, "keras predict", "float32", lambda: Detector(PredictRunner(weights)), ours=False))
        naive = CACHE / f"{model}.naive.onnx"
        found.append(
            Candidate(model, "tf2onnx naive", "float32", lambda: _naive_detector(weights, naive, threads), ours=False)
        )
    for runtime, precision, path in precision_files(onnx):
        found.append(
            Candidate(
                model,
                runtime,
                precision,
                _opener(path, runtime, precision, threads),
                onnx=path,
                cold=(path, runtime, precision),
            )
        )
    return found


def _opener(path: Path, runtime: str, precision: str, threads: int) -> Callable[[], Detector]:
    return lambda: Detector(load_runner(path, runtime=runtime, precision=precision, threads=threads))


def precision_files(onnx: Path) -> list[tuple[str, str, Path]]:
    """(runtime, precision, file) of our forms of one model."""
    return [(runtime, "float32", onnx) for runtime in ("onnxruntime", "openvino")]


def _naive_detector(weights: Path, path: Path, threads: int) -> Detector:
    from blu_export.model.weights import build_model

    model, _ = build_model(weights)
    if not path.exists():
        say(f"converting {path.stem} with tf2onnx's own handlers (about a minute)")
        export_naive(model, path)
    return Detector(NaiveRunner(path, model.spec, threads))


class PredictRunner(Runner):
    """``keras.Model.predict``, as users of the original call it."""

    runtime = "keras predict"
    device = "CPU"
    precision = "float32"

    def __init__(self, weights: Path) -> None:
        import keras
        from blu_export.model.weights import build_model

        model, _ = build_model(weights)
        anchors = model.anchors(model.spec.canvas)

        class Predict(keras.Model):
            def call(self, inputs: Any) -> Any:
                stages = model.forward(*inputs, anchors)
                return stages["detections"], stages["masks"]

        self.spec = model.spec
        self.model = Predict()

    def run(self, canvas: Any, window: Any) -> Any:
        """See ``Runner.run``."""
        return self.model.predict((canvas, window), batch_size=len(canvas), verbose=0)


def curves(onnx: Path, threads: int) -> dict[str, dict[str, list[float]]]:
    """Cost of everything but the network, and of the network, against one quantity at a time."""
    from blu_export.image import mold, unmold

    runner = load_runner(onnx, runtime="onnxruntime", threads=threads)
    spec, random = runner.spec, np.random.default_rng(0)
    assert spec.canvas is not None
    canvas = random.integers(0, 255, (8, *spec.canvas, 3), np.uint8)
    window = np.tile(np.float32([0, 0, *spec.canvas]), (8, 1))
    found: dict[str, dict[str, list[float]]] = {}

    def measure(title: str, xs: list[float], action: Callable[[float], Callable[[], object]]) -> None:
        say(f"curve: {title}")
        rounds = take_turns({str(x): action(x) for x in xs}, 5, 1)
        found[title] = {"x": list(xs), "seconds": [float(np.median(rounds.seconds[str(x)])) for x in xs]}

    measure("batch (per photo)", [1, 2, 4, 8], lambda b: lambda: runner.run(canvas[: int(b)], window[: int(b)]))
    seconds = found["batch (per photo)"]["seconds"]
    found["batch (per photo)"]["seconds"] = [s / b for s, b in zip(seconds, (1, 2, 4, 8), strict=True)]

    def megapixels(size: float) -> Callable[[], object]:
        side = int((size * 1e6 / 12) ** 0.5)
        photo = random.integers(0, 255, (3 * side, 4 * side, 3), np.uint8)
        return lambda: mold(photo, spec)

    measure("megapixels (mold)", [0.3, 3, 6, 12, 24], megapixels)
    rows, masks = _random_detections(spec, random)
    photo = random.integers(0, 255, (3000, 4000, 3), np.uint8)
    molded = mold(photo, spec)

    def instances(count: float) -> Callable[[], object]:
        used = np.where(np.arange(len(rows))[:, None] < count, rows, 0)
        return lambda: unmold(used, masks, molded, spec)

    measure("instances (unmold, 12 MP)", [0, 25, 50, 100], instances)
    runner.close()
    return found


def _random_detections(spec: Any, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Raw detections of all possible rows: boxes of all sizes inside the canvas."""
    count = spec.detection_max_instances
    corner = random.uniform(0.15, 0.5, (count, 2))
    size = random.uniform(0.02, 0.35, (count, 2))
    rows = np.concatenate([corner, corner + size, np.ones((count, 1)), np.full((count, 1), 0.9)], axis=1)
    return rows.astype(np.float32), random.random((count, *spec.mask_shape), np.float32)


def write(result: dict[str, Any]) -> None:
    """Results to RESULTS: JSON, Markdown and plots."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "benchmark.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "benchmark.md").write_text(markdown(result))
    plot_bars(result, RESULTS / "benchmark.png")
    if "curves" in result:
        plot_curves(result["curves"], RESULTS / "curves.png")
    say(f"wrote {RESULTS.relative_to(ROOT)}/benchmark.json, .md and .png")


def update_readme() -> None:
    """Put the newest table between the marks of README.md."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    before, mark, rest = text.partition(_README_MARK)
    _, end, after = rest.partition(_README_END)
    if not mark or not end:
        sys.exit(f"README.md has no '{_README_MARK}' … '{_README_END}'")
    table = (RESULTS / "benchmark.md").read_text()
    readme.write_text(f"{before}{mark}\n{table}{end}{after}")


if __name__ == "__main__":
    main()
