"""Engines on a real GPU: built, inspected, run, compared, captured, shared by threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blu_export.errors import MissingDependencyError, ModelFileError
from blu_export.image import decode, mold
from blu_export.parity.verify import verify
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.runtime.tensorrt import TensorRtRunner
from blu_export.tensorrt.cuda import Cuda
from blu_export.tensorrt.sidecar import UNKNOWN, Sidecar

SAME = 2e-3
"""Between runs of one engine in batches of different sizes, whose kernels differ; half's own rounding is 5e-4."""
SAME_BOX, SAME_MASK = 0.01, 0.1
"""Likewise: of a box, which is a fraction of the canvas, and of a mask's pixels before they are cut at 0.5."""

Build = Callable[..., tuple[Path, Sidecar]]


@pytest.fixture
def runner(build: Build) -> Iterator[TensorRtRunner]:
    with TensorRtRunner(build("fp16")[0]) as made:
        yield made


@pytest.fixture
def batch(runner: TensorRtRunner, photo: Path) -> Callable[[int], tuple[Any, Any]]:
    """``batch(count)``: canvases of the photo, each shifted a little, and their windows."""
    molded = mold(decode(photo), runner.spec)

    def make(count: int) -> tuple[Any, Any]:
        canvas = np.stack([np.roll(molded.canvas, 8 * i, axis=1) for i in range(count)])
        return canvas, np.repeat(molded.window[None], count, axis=0).astype(np.float32)

    return make


def same(found: Any, wanted: Any) -> None:
    """Equal instances; one may change its place among others of the same score."""
    np.testing.assert_allclose(np.sort(found[0][..., 5]), np.sort(wanted[0][..., 5]), atol=SAME)
    for rows, masks, wanted_rows, wanted_masks in zip(*found, *wanted, strict=True):
        for row, mask in zip(wanted_rows, wanted_masks, strict=True):
            if row[4] == 0:
                continue
            of_class = np.flatnonzero(rows[:, 4] == row[4])
            distances = np.abs(rows[of_class, :4] - row[:4]).max(axis=1)
            partner = of_class[distances.argmin()]
            assert distances.min() <= SAME_BOX
            np.testing.assert_allclose(masks[partner], mask, atol=SAME_MASK)


@pytest.mark.parametrize("precision", ["fp16", "float32"])
def test_built_inspected_and_compared(build: Build, builder: str, device: Cuda, precision: str) -> None:
    path, sidecar = build(precision)
    assert path.stat().st_size > 100_000
    assert (sidecar.capability, sidecar.built_on) == (device.capability, device.name)
    assert sidecar.parity is not None and sidecar.parity["passed"]
    if precision == "fp16" and builder == "tensorrt":
        assert sidecar.reduced_share == UNKNOWN or float(sidecar.reduced_share) >= 0.95
    else:
        assert sidecar.reduced_share == UNKNOWN


def test_int8_builds_and_runs(build: Build, photo: Path) -> None:
    path, sidecar = build("int8", verify=False)
    assert sidecar.precision == "int8"
    with TensorRtRunner(path) as runner:
        molded = mold(decode(photo), runner.spec)
        detections, masks = runner.run(molded.canvas[None], molded.window[None].astype(np.float32))
    assert np.isfinite(detections).all() and ((masks >= 0) & (masks <= 1)).all()


def test_a_timing_cache_is_written_and_read(build: Build, builder: str, tmp_path: Path) -> None:
    if builder != "tensorrt":
        pytest.skip("TensorRT-RTX times nothing while it builds")
    cache = tmp_path / "gpu.cache"
    build("fp16", timing_cache=cache, verify=False)
    written = cache.stat().st_size
    assert written > 0
    build("fp16", timing_cache=cache, level=3, verify=False)  # the builder's own default level: the same timings
    assert cache.stat().st_size >= written


def test_it_finds_what_the_file_finds(runner: TensorRtRunner, garments_onnx: Path, photo: Path) -> None:
    with OnnxRuntimeRunner(garments_onnx, "cpu") as reference:
        verify(reference, runner, [photo]).require()


def test_captured_graphs_compute_the_same(runner: TensorRtRunner, builder: str, batch: Any) -> None:
    for count in (1, 3):
        first, *later = [runner.run(*batch(count)) for _ in range(4)]
        for found in later:
            same(found, first)
    assert runner.cuda_graphs == ("on" if builder == "tensorrt" else "left to TensorRT-RTX")


@pytest.mark.parametrize("count", [2, 4, 5, 9])
def test_batches_of_any_size(runner: TensorRtRunner, batch: Any, count: int) -> None:
    canvas, window = batch(count)
    detections, masks = runner.run(canvas, window)
    for i in range(count):
        same((detections[i : i + 1], masks[i : i + 1]), runner.run(canvas[i : i + 1], window[i : i + 1]))


def test_a_stream_keeps_its_order(runner: TensorRtRunner, batch: Any) -> None:
    batches = [batch(count) for count in (1, 4, 2, 6, 1, 3)]
    alone = [runner.run(*item) for item in batches]
    for found, wanted in zip(runner.stream(iter(batches)), alone, strict=True):
        same(found, wanted)


def test_threads_share_it(runner: TensorRtRunner, batch: Any) -> None:
    wanted = {count: runner.run(*batch(count)) for count in (1, 2, 3)}
    problems: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(10):
                for count, result in wanted.items():
                    same(runner.run(*batch(count)), result)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems, problems[0]


def test_memory_is_given_back(build: Build, device: Cuda, photo: Path) -> None:
    path, _ = build("fp16")
    free = []
    for _ in range(4):
        with TensorRtRunner(path) as runner:
            molded = mold(decode(photo), runner.spec)
            runner.run(molded.canvas[None], molded.window[None].astype(np.float32))
        free.append(device.memory()[0])
    assert free[-1] >= free[1] - 2**24, "each load keeps memory"


def test_an_engine_for_another_card(build: Build, tmp_path: Path) -> None:
    import dataclasses

    path, sidecar = build("fp16")
    other = tmp_path / "other.engine"
    other.write_bytes(path.read_bytes())
    dataclasses.replace(sidecar, capability=(3, 5), target="k40").write(other)
    with pytest.raises(ModelFileError, match=r"built for k40 \(sm35\).*--target sm"):
        TensorRtRunner(other)


def test_no_such_gpu(build: Build) -> None:
    with pytest.raises(MissingDependencyError, match="no GPU 77"):
        TensorRtRunner(build("fp16")[0], "cuda:77")
