"""Memory over many photos: a stream must not grow with them.

    python -m benchmarks memory                          # 10,000 photos on the default model at 128×128: two minutes
    python -m benchmarks memory --canvas 0 --count 2000  # on its own canvas

The memory of the process is read every hundred photos, after the first five hundred have filled the
buffers. Exit code 1 when it grew by more than 5 %. Results go to benchmarks/results/memory.json and .png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from blu_export.benchmark.curves import encode, random_photo
from blu_export.benchmark.save import write_text
from blu_export.cli.common import wrote
from blu_export.contract import Metadata
from blu_export.detector import Detector
from blu_export.embedded import embedded
from blu_export.files import atomic_write
from blu_export.runtime.onnx_file import parse_onnx, read_onnx, spec_of
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

RESULTS = Path(__file__).resolve().parent / "results"
EVERY = 100
SETTLED = 500
ALLOWED_GROWTH = 1.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a float32 .onnx file; default: the embedded model")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--canvas", type=int, default=128, help="side of the canvas; 0 takes the model's own")
    parser.add_argument("--lanes", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.count <= SETTLED:
        parser.error(f"--count must be more than {SETTLED}: that many photos fill the buffers")
    with load(arguments.model or embedded(), arguments.canvas) as runner:
        runner.lanes = arguments.lanes
        photos, memory, seconds = measure(Detector(runner), arguments.count)
    settled = [mib for photo, mib in zip(photos, memory, strict=True) if photo >= SETTLED]
    growth = float(np.median(settled[-5:]) / np.median(settled[:5]))
    print(f"{arguments.count} photos in {seconds:.0f} s; {settled[0]:.0f} MiB, at the end {settled[-1]:.0f} MiB")
    result = {"count": arguments.count, "canvas": arguments.canvas, "growth": growth, "photos": photos, "mib": memory}
    write_text(RESULTS / "memory.json", json.dumps(result) + "\n")
    plot(photos, memory, RESULTS / "memory.png")
    wrote(RESULTS / "memory.json")
    wrote(RESULTS / "memory.png")
    if growth > ALLOWED_GROWTH:
        sys.exit(f"memory grew by {growth - 1:.0%} from photo {SETTLED} on")


def load(path: Path, canvas: int) -> OnnxRuntimeRunner:
    """The model; with a canvas composed anew for it, and for few ROIs: it is the number of photos that counts."""
    if not canvas:
        return OnnxRuntimeRunner(path, "cpu", 1)
    import onnx

    from blu_export.graph.compose import compose
    from blu_export.graph.split import split

    spec = spec_of(read_onnx(path), str(path))
    small = spec.replace(
        image_min_dim=canvas, image_max_dim=canvas, post_nms_rois_inference=100, detection_max_instances=10
    )
    model = compose(split(onnx.load(path), spec), small)
    onnx.helper.set_model_props(model, {Metadata.SPEC: small.to_json()})
    return OnnxRuntimeRunner(parse_onnx(model.SerializeToString()), "cpu", 1)


def measure(detector: Detector, count: int) -> tuple[list[int], list[float], float]:
    """(photo numbers, MiB at each, seconds) of a stream of encoded photos of many sizes."""
    random = np.random.default_rng(0)
    some = [encode(noisy(random, *random.integers(48, 200, 2))) for _ in range(50)]

    def sources() -> Iterator[bytes]:
        for number in range(count):
            yield some[number % len(some)]

    photos, memory, start = [], [], time.perf_counter()
    for number, photo in enumerate(detector.stream(sources()), start=1):
        photo.result()
        if number % EVERY == 0:
            photos.append(number)
            memory.append(resident_mib())
    return photos, memory, time.perf_counter() - start


def noisy(random: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """A photo that is not like the last one."""
    noise = random.integers(-30, 30, (height, width, 3))
    return np.clip(random_photo(height, width) + noise, 0, 255).astype(np.uint8)


def resident_mib() -> float:
    """Memory that the process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def plot(photos: list[int], memory: list[float], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 2.6))
    axis.plot(photos, memory, color="#2a6f97")
    axis.set_xlabel("photos")
    axis.set_ylabel("MiB of the process")
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
