"""What ``benchmarks/gpu.sh`` runs: engines built, compared and timed on this machine's GPU.

Models on the square canvas have rows on canvases that fit, too, as ``NAME.fit``.

Models and precisions take their turn by importance until the time is used up; what was not reached is listed as
not measured. Numbers are this machine's own, and the file names its card.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu_peak import cuda_peak, engine_peak
from benchmarks.models import with_fit
from blu_export.benchmark.machine import describe
from blu_export.benchmark.timing import Timing
from blu_export.embedded import DEMO_PHOTO, embedded
from blu_export.errors import BluError, ModelFileError, UsageError
from blu_export.export.engine import Request, build_engine, find_device
from blu_export.extras import install_command
from blu_export.files import atomic_write
from blu_export.image import Molded, decode, mold
from blu_export.runtime.base import Runner
from blu_export.runtime.onnx_file import parse_onnx, read_onnx, spec_of
from blu_export.sources import find_images
from blu_export.tensorrt.builder import check_target
from blu_export.tensorrt.cuda import Cuda
from blu_export.tensorrt.libraries import BUILDERS, is_installed, load_builder
from blu_export.tensorrt.sidecar import Batch

ROOT = Path(__file__).resolve().parent.parent
CUDA = "onnxruntime-cuda"
PRECISIONS = ("fp16", "float32", "int8")
"""By importance."""
BATCHES = (1, 4, 8)
WARMUP = 3
"""The first run of a batch size sets up and captures a CUDA graph."""
SECONDS_EACH = 2.5
"""How long one batch size is timed."""
MOST_RUNS = 400
MARGIN = 25.0
"""Seconds kept for what is under way when the time is up."""
NOT_MEASURED = "not measured"


@dataclass
class Session:
    """One go: what is here, what was found, and how much time is left."""

    deadline: float
    photos: list[Path]
    result: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """Progress, on stderr."""
        print(line, file=sys.stderr, flush=True)

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.monotonic()

    def skip(self, what: str, why: str) -> None:
        """Note what has no number."""
        self.result["not_measured"].append({"what": what, "why": why})
        self.say(f"{NOT_MEASURED}: {what}: {why}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="float32 .onnx files of blu export onnx")
    parser.add_argument("--calibration", action="append", help="photos for int8 ranges; default: the demo photo")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    arguments = parser.parse_args()
    photos = find_images(arguments.calibration or [embedded(DEMO_PHOTO)])
    session = Session(time.monotonic() + 60 * arguments.minutes - MARGIN, photos)
    try:
        code = 0 if measure(session, arguments.models) else 4
    except BluError as error:  # a lost GPU: what was measured before counts
        session.say(f"error: {error}")
        code = error.exit_code
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.out) as temporary:
        temporary.write_text(json.dumps(session.result, indent=2) + "\n", encoding="utf-8")
    session.say(f"wrote {arguments.out}")
    print(arguments.out)
    sys.exit(code)


def measure(session: Session, models: list[Path]) -> bool:
    """Fill the session's result; False when nothing could be measured."""
    device = find_device()
    missing = what_is_missing(device)
    session.result.update(
        {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": describe(),
            "gpu": None,
            "missing": missing,
            "not_measured": [],
            "peaks": {},
            "rows": [],
        }
    )
    for name, brings in missing.items():
        session.say(f"missing: {name}: {brings}")
    if device is None:
        session.skip("everything", "no GPU")
        return False
    runtimes = _runtimes(session, device)
    if not runtimes:
        session.skip("everything", "no runtime for the GPU")
        return False
    free, total = device.memory()
    major, minor = device.capability
    session.result["gpu"] = {
        "name": device.name,
        "compute_capability": f"{major}.{minor}",
        "memory_bytes": total,
        "free_bytes_before": free,
        "driver_cuda": device.driver(),
    }
    session.say(f"{device.name} (sm{major}{minor}), {total / 2**30:.0f} GiB, by {', '.join(runtimes)}")
    chosen = models or _found_models()
    if not chosen:
        session.skip("every model", "there is none: name a file, or make some with python -m benchmarks")
        return False
    for precision, runtime in itertools.product(PRECISIONS, runtimes):
        if (precision, runtime) != ("int8", CUDA):
            what = f"matrix peak in {precision} by {runtime}"
            _attempt(session, what, lambda r=runtime, p=precision: _peak(session, r, device, p))
    with tempfile.TemporaryDirectory(prefix="blu-gpu-") as folder:
        _measure_models(session, device, with_fit(chosen, Path(folder)), runtimes)
    return bool(session.result["rows"])


def _measure_models(session: Session, device: Cuda, models: list[Path], runtimes: list[str]) -> None:
    for path, precision, runtime in itertools.product(models, PRECISIONS, runtimes):
        name = f"{path.stem} in {precision} by {runtime}"
        if session.left() <= 0:
            session.skip(name, "the time is used up")
            continue
        session.say(name)
        row: dict[str, Any] = {"model": path.stem, "runtime": runtime, "precision": precision}
        measure_row = _cuda_row if runtime == CUDA else _engine_row
        _attempt(session, name, lambda work=measure_row, path=path, row=row: work(session, device, path, row))


def what_is_missing(device: Cuda | None) -> dict[str, str]:
    """Package or device -> what it would bring."""
    missing = {}
    if device is None:
        why = "" if importlib.util.find_spec("cuda") else " (or no cuda-python to find it: pip install cuda-python)"
        missing["NVIDIA GPU"] = f"none can be used here{why}"
    if not is_installed("tensorrt"):
        missing["tensorrt"] = f"engines tuned on this card: {install_command('gpu')}"
    if not is_installed("tensorrt-rtx"):
        missing["tensorrt-rtx"] = f"engines where TensorRT is not: {install_command('rtx')}"
    if "CUDAExecutionProvider" not in _providers():
        missing["onnxruntime-gpu"] = "ONNX Runtime on CUDA: pip install onnxruntime-gpu instead of onnxruntime"
    if importlib.util.find_spec("onnx") is None:
        missing["onnx"] = "typing and building of models: pip install onnx"
    return missing


def _providers() -> list[str]:
    if importlib.util.find_spec("onnxruntime") is None:
        return []
    import onnxruntime

    return list(onnxruntime.get_available_providers())


def _runtimes(session: Session, device: Cuda) -> list[str]:
    """What can run here: the better builder, and ONNX Runtime's CUDA as its peer."""
    found = []
    for name in (name for name in BUILDERS if is_installed(name) and importlib.util.find_spec("onnx")):
        try:
            check_target(load_builder(name), device.capability)
            found = found or [name]
        except BluError as error:
            session.skip(name, str(error))
    return found + [CUDA] * ("CUDAExecutionProvider" in _providers())


def _found_models() -> list[Path]:
    """The embedded model, then those that ``python -m benchmarks`` made: float32 ones."""
    found = []
    try:
        found.append(embedded())
    except ModelFileError as error:
        print(f"missing: {error}", file=sys.stderr)
    cache = sorted((ROOT / "benchmarks" / "cache").glob("export-*/resnet*.onnx"))
    return found + [path for path in cache if "." not in path.stem and "naive" not in path.stem]


def _attempt(session: Session, what: str, work: Callable[[], None]) -> None:
    """One measurement; a problem of its own does not end the others, unless the GPU is lost."""
    try:
        work()
    except BluError as error:
        session.skip(what, str(error))
        if error.lost:
            raise
    except Exception as error:  # native libraries raise what they like
        session.skip(what, f"{type(error).__name__}: {error}")


def _peak(session: Session, runtime: str, device: Cuda, precision: str) -> None:
    rate = cuda_peak(precision) if runtime == CUDA else engine_peak(load_builder(runtime), device, precision)
    peaks = session.result["peaks"]
    peaks[precision] = max(rate, peaks.get(precision, 0.0))
    session.say(f"matrix peak in {precision} by {runtime}: {rate / 1e12:.1f} TFLOP/s")


def _cuda_row(session: Session, device: Cuda, path: Path, row: dict[str, Any]) -> None:
    """One model in one precision by ONNX Runtime's CUDA: typed, compared, timed."""
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

    precision = row["precision"]
    if precision == "int8":
        raise UsageError("ONNX Runtime's CUDA has no int8 kernels for these layers")
    file = read_onnx(path)
    if precision != "float32":
        import onnx

        from blu_export.export.checked import checked_graph
        from blu_export.graph.split import split
        from blu_export.quantize.precision import apply_precision, canvases

        spec = spec_of(file, str(path))
        parts = split(onnx.load_from_string(file.data), spec)
        typed = apply_precision(parts, spec, precision, "portable", canvases(session.photos, spec))
        row["fallback_layers"] = dict(typed.fallback_layers)
        file = parse_onnx(checked_graph(typed, spec).SerializeToString(), str(path))
    with OnnxRuntimeRunner(file, "cuda", source=str(path)) as runner:
        _measure_runner(session, runner, path, device, row)


def _engine_row(session: Session, device: Cuda, path: Path, row: dict[str, Any]) -> None:
    """One model in one precision by an engine: built, compared, timed."""
    precision, builder = row["precision"], row["runtime"]
    with tempfile.TemporaryDirectory(prefix="blu-gpu-") as folder:
        output = Path(folder) / "model.engine"
        request = Request(
            path, precision, "this-gpu", builder, Batch(1, max(BATCHES) // 2, max(BATCHES)), output=output, verify=False
        )
        start = time.perf_counter()
        _, sidecar = build_engine(request, session.photos, device, session.say)
        row |= {
            "runtime": f"{builder} {sidecar.builder_version}",
            "build_seconds": sidecar.build_seconds,
            "with_measuring_seconds": round(time.perf_counter() - start, 1),
            "engine_bytes": output.stat().st_size,
            "fallback_layers": sidecar.fallback_layers,
            "typed_share": sidecar.typed_share,
            "reduced_share": sidecar.reduced_share,
        }
        from blu_export.runtime.tensorrt import TensorRtRunner

        with TensorRtRunner(output) as runner:
            _measure_runner(session, runner, path, device, row)
            row["cuda_graphs"] = runner.cuda_graphs


def _measure_runner(session: Session, runner: Runner, path: Path, device: Cuda, row: dict[str, Any]) -> None:
    """Parity, times, memory and share of the peak, into a row of the result."""
    from blu_export.parity.verify import verify
    from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

    with OnnxRuntimeRunner(path, "cpu") as reference:
        report = verify(reference, runner, session.photos[:4])
    row["parity"] = report.to_json()
    for line in report.lines():
        session.say(f"  {line}")
    molded = mold(decode(session.photos[0]), runner.spec)
    flops = _flops(path, runner, molded)
    row["gflop_per_photo"] = flops / 1e9 if flops else None
    row["batches"] = {}
    for batch in BATCHES:
        canvas, window = (np.repeat(array[None], batch, axis=0) for array in (molded.canvas, molded.window))
        window = window.astype(np.float32)
        seconds = _timed(lambda canvas=canvas, window=window: runner.run(canvas, window))
        found = {"latency": Timing.of(seconds).to_json(), "photos_per_second": batch / float(np.median(seconds))}
        if hasattr(runner, "stream"):
            found["photos_per_second_streamed"] = _streamed(runner, canvas, window)
        peak = session.result["peaks"].get(row["precision"])
        if flops and peak:
            found["share_of_peak"] = flops * found["photos_per_second"] / peak
        row["batches"][str(batch)] = found
        session.say(f"  batch {batch}: {found['photos_per_second']:.1f} photos/s, median {np.median(seconds):.4f} s")
    free, total = device.memory()
    row["device_bytes_in_use"] = total - free
    session.result["rows"].append(row)


def _timed(run: Callable[[], Any]) -> list[float]:
    for _ in range(WARMUP):
        run()
    seconds: list[float] = []
    end = time.perf_counter() + SECONDS_EACH
    while len(seconds) < MOST_RUNS and (time.perf_counter() < end or len(seconds) < 5):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return seconds


def _streamed(runner: Any, canvas: Any, window: Any) -> float:
    """Photos per second when batches follow each other: upload, run and download overlap."""
    done = 0
    start = time.perf_counter()

    def batches() -> Iterator[tuple[Any, Any]]:
        while time.perf_counter() < start + SECONDS_EACH:
            yield canvas, window

    for found, _ in runner.stream(batches()):
        done += len(found)
    return done / (time.perf_counter() - start)


def _flops(path: Path, runner: Runner, molded: Molded) -> float | None:
    """Of one photo: an engine's mask head sees every row, empty ones too; that of the portable file real ones."""
    if importlib.util.find_spec("onnx") is None:
        return None
    import onnx

    from blu_export.benchmark.flops import count_flops

    rows, _ = runner.run(molded.canvas[None], molded.window[None].astype(np.float32))
    engine = runner.runtime.startswith("tensorrt")
    seen = runner.spec.detection_max_instances if engine else int(np.count_nonzero(rows[0, :, 4]))
    return count_flops(onnx.load(path), molded.canvas.shape[:2], seen).total
