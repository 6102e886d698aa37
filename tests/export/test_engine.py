"""What ``build_engine`` decides and does, with a fake TensorRT whose engines ONNX Runtime runs."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_builder import OWN_TIMINGS, FakeBuilderTensorRt
from fake_gpu import FakeCuda

from blu_export.cli.build_engine import parse_batch, parse_size
from blu_export.errors import CheckFailedError, MissingDependencyError, ModelFileError, UsageError
from blu_export.export import engine as build_module
from blu_export.export.engine import Request, build_engine, plan
from blu_export.export.engine_graph import prepare
from blu_export.graph.split import split
from blu_export.image import canvas_of, decode, mold
from blu_export.quantize.half import to_half
from blu_export.quantize.precision import TypedSubnetworks, compose_typed
from blu_export.runtime import load_runner
from blu_export.runtime.onnx_file import read_onnx, spec_of
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.tensorrt.cuda import Cuda
from blu_export.tensorrt.sidecar import UNKNOWN, Batch, Canvases, read_sidecar

ANY_FILE = Path("model.onnx")


class Bench:
    """A machine with a fake T4, TensorRT and a small model."""

    def __init__(self, onnx: Path, folder: Path, photo: Path, cuda: FakeCuda, trt: FakeBuilderTensorRt) -> None:
        self.onnx, self.folder, self.photo, self.cuda, self.trt = onnx, folder, photo, cuda, trt
        self.said: list[str] = []

    def build(self, progress: Any = None, **changes: Any) -> Any:
        values: dict[str, Any] = {"output": self.folder / "small.engine", "batch": Batch(1, 2, 4)}
        request = Request(self.onnx, **(values | changes))
        return build_engine(request, [self.photo], Cuda(0, self.cuda), self.said.append, progress)

    def files(self) -> list[str]:
        return sorted(p.name for p in self.folder.iterdir())


@pytest.fixture
def bench(
    small_onnx: Path, demo_photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_once: Any
) -> Bench:
    cuda = FakeCuda()
    trt = FakeBuilderTensorRt(cuda)
    monkeypatch.setattr(build_module, "prepare", prepare_once)
    monkeypatch.setattr(build_module, "load_builder", lambda name: trt)
    monkeypatch.setattr(build_module, "is_installed", lambda name: name == "tensorrt")
    monkeypatch.setattr("blu_export.runtime.tensorrt.load_builder", lambda name: trt)
    monkeypatch.setattr("blu_export.runtime.tensorrt.Cuda", lambda device=0: Cuda(device, cuda))
    return Bench(small_onnx, tmp_path, demo_photo, cuda, trt)


def test_with_the_card_the_engine_is_inspected_run_and_compared(bench: Bench) -> None:
    path, sidecar = bench.build()
    assert (sidecar.builder, sidecar.builder_version, sidecar.built_on) == ("tensorrt", "11.4.0", "Fake T4")
    assert (sidecar.target, sidecar.capability, sidecar.batch) == ("sm75", (7, 5), Batch(1, 2, 4))
    assert sidecar.reduced_share == 1.0 and "half" in sidecar.reduced_note
    assert sidecar.parity is not None and sidecar.parity["passed"]
    assert sidecar.parity["candidate"] == "tensorrt fp16 on CUDA: Fake T4"
    assert read_sidecar(path) == sidecar
    assert "--target sm75 --builder tensorrt --batch 1,2,4" in sidecar.rebuild
    with load_runner(path) as runner, OnnxRuntimeRunner(bench.onnx, "cpu") as reference:
        molded = mold(decode(bench.photo), runner.spec)
        found, wanted = (r.run(molded.canvas[None], molded.window[None])[0] for r in (runner, reference))
    np.testing.assert_allclose(found[0, :5, 5], wanted[0, :5, 5], atol=5e-3)


def test_an_engine_of_canvases_that_fit(bench: Bench) -> None:
    path, sidecar = bench.build(canvas="fit", calibration=(str(bench.photo),))
    side = sidecar.spec.image_max_dim
    photo = decode(bench.photo)
    assert sidecar.canvases == Canvases((64, 64), canvas_of(*photo.shape[:2], sidecar.spec), (side, side))
    assert sidecar.parity is not None and sidecar.parity["passed"] and "--canvas fit" in sidecar.rebuild
    with load_runner(path) as runner:
        wide = mold(photo[: photo.shape[1] // 3], runner.spec)
        assert wide.canvas.shape[:2] == (64, side)
        assert runner.run(wide.canvas[None], wide.window[None])[0].any()


def test_an_engine_in_float32_is_not_written(bench: Bench, prepare_once: Any) -> None:
    layers = list(prepare_once(bench.onnx, "fp16", [bench.photo]).layers.kinds)
    bench.trt.float32_layers = set(layers[: len(layers) // 10])
    with pytest.raises(CheckFailedError, match="learned layers are in float32") as caught:
        bench.build()
    assert all(name in caught.value.what for name in bench.trt.float32_layers)
    assert bench.files() == []


def test_a_float32_engine_is_not_asked_for_halves(bench: Bench) -> None:
    _, sidecar = bench.build(precision="float32")
    assert (sidecar.reduced_share, sidecar.typed_share) == (UNKNOWN, 0.0)
    assert sidecar.parity is not None and sidecar.parity["passed"]


def test_an_engine_that_finds_other_things_is_not_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.runtime.tensorrt import TensorRtRunner

    run = TensorRtRunner.run
    monkeypatch.setattr(TensorRtRunner, "run", lambda self, c, w: run(self, 255 - c, w))
    with pytest.raises(CheckFailedError, match="tensorrt fp16 on CUDA: Fake T4 is not onnxruntime float32"):
        bench.build()
    assert bench.files() == []


def test_options_reach_the_builder(bench: Bench) -> None:
    bench.build(workspace=2**20, level=2, verify=False)
    config = bench.trt.config
    assert config is not None
    assert (config.pools, config.builder_optimization_level) == ({bench.trt.MemoryPoolType.WORKSPACE: 2**20}, 2)
    assert config.cleared == [bench.trt.BuilderFlag.TF32], "TF32 is another precision than the file's"
    assert config.profiling_verbosity == bench.trt.ProfilingVerbosity.DETAILED
    assert bench.trt.sizes == (1, 2, 4)


def test_the_command_that_builds_it_again_has_every_option(bench: Bench) -> None:
    options = {"workspace": 2**20, "level": 2, "verify": False, "timing_cache": bench.folder / "t4.cache"}
    _, sidecar = bench.build(**options, calibration=("my photos/*.jpg", "b"), method="entropy")
    words = shlex.split(sidecar.rebuild)
    output = os.fspath(bench.folder / "small.engine")
    assert words == [
        "blu", "build-engine", os.fspath(bench.onnx), "--fp16", "--target", "sm75", "--builder", "tensorrt",
        "--batch", "1,2,4", "--calibration", "my photos/*.jpg", "--calibration", "b", "--calibration-method", "entropy",
        "--workspace", "1048576", "--timing-cache", os.fspath(bench.folder / "t4.cache"), "--level", "2",
        "--no-verify", "-o", output,
    ]  # fmt: skip


def test_a_timing_cache_is_kept_and_one_of_another_gpu_begun_anew(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    cache = bench.folder / "t4.cache"
    for _ in range(2):
        bench.build(timing_cache=cache, verify=False)
        assert cache.read_bytes() == OWN_TIMINGS and not caplog.records
    cache.write_bytes(b"timings of another GPU")
    bench.build(timing_cache=cache, verify=False)
    assert cache.read_bytes() == OWN_TIMINGS
    assert "another GPU or TensorRT version" in caplog.text


def test_progress_is_the_builders_own(bench: Bench) -> None:
    seen: list[tuple[str, int, int]] = []
    bench.build(lambda *step: seen.append(step), verify=False)
    assert ("Choosing kernels", 3, 5) in seen and seen[0] == ("Building", 0, 2)


def test_an_interrupt_stops_the_build(bench: Bench) -> None:
    def interrupted(phase: str, done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench.build(interrupted, verify=False)
    assert bench.files() == []


def test_a_refused_node_is_named_with_its_stage(bench: Bench) -> None:
    bench.trt.refused_operator = "TopK"
    with pytest.raises(ModelFileError, match=r"TensorRT 11.4.0 refuses node (\w+)/\S+ of stage \1: .*no importer"):
        bench.build(verify=False)


DECISIONS: list[tuple[str | None, str, tuple[int, int] | None, tuple[str, ...], str, str]] = [
    # target, builder, GPU here, installed -> target, builder
    (None, "auto", None, ("tensorrt-rtx",), "t4", "tensorrt-rtx"),
    (None, "auto", None, ("tensorrt", "tensorrt-rtx"), "t4", "tensorrt-rtx"),
    (None, "auto", (7, 5), ("tensorrt", "tensorrt-rtx"), "sm75", "tensorrt"),
    (None, "auto", (8, 6), ("tensorrt-rtx",), "sm86", "tensorrt-rtx"),
    ("t4", "auto", (8, 6), ("tensorrt", "tensorrt-rtx"), "t4", "tensorrt-rtx"),
    ("rtx3090", "auto", (8, 6), ("tensorrt", "tensorrt-rtx"), "rtx3090", "tensorrt"),
    ("this-gpu", "tensorrt-rtx", (8, 6), ("tensorrt", "tensorrt-rtx"), "sm86", "tensorrt-rtx"),
]


@pytest.mark.parametrize(("target", "builder", "here", "installed", "wanted", "chosen"), DECISIONS)
def test_target_and_builder(
    target: str | None,
    builder: str,
    here: tuple[int, int] | None,
    installed: tuple[str, ...],
    wanted: str,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "is_installed", lambda name: name in installed)
    device = Cuda(0, FakeCuda(here)) if here else None
    decided = plan(Request(ANY_FILE, target=target, builder=builder), device)
    assert (decided.target.name, decided.builder) == (wanted, chosen)
    assert decided.why


@pytest.mark.parametrize(
    ("changes", "here", "error", "message"),
    [
        ({"builder": "trtexec"}, None, UsageError, "no builder 'trtexec'"),
        ({"target": "this-gpu"}, None, MissingDependencyError, "no GPU here to build for"),
        ({"target": "t4", "builder": "tensorrt"}, None, MissingDependencyError, "this machine has none"),
        ({"target": "t4", "builder": "tensorrt"}, (8, 6), MissingDependencyError, "this machine's is Fake T4"),
        ({"target": "t4"}, None, MissingDependencyError, r"not installed.*\[rtx\]"),
        ({"builder": "tensorrt-rtx", "timing_cache": Path("x")}, None, UsageError, "no timing cache"),
    ],
)
def test_what_cannot_be_built(
    changes: dict[str, Any],
    here: tuple[int, int] | None,
    error: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build_module, "is_installed", lambda name: False)
    with pytest.raises(error, match=message):
        plan(Request(ANY_FILE, **changes), Cuda(0, FakeCuda(here)) if here else None)


def test_files_that_cannot_be_typed(fake_onnx: Callable[..., Path], small_onnx: Path) -> None:
    with pytest.raises(UsageError, match="is int8, and cannot become fp16"):
        prepare(fake_onnx(metadata={"blu_precision": "int8"}), "fp16", [])
    with pytest.raises(UsageError, match="quantized for processors"):
        prepare(fake_onnx(metadata={"blu_precision": "int8"}), "int8", [])
    with pytest.raises(ModelFileError, match="no trunk that can be taken out"):
        prepare(fake_onnx(), "float32", [])
    with pytest.raises(UsageError, match="fp16 needs photos"):
        prepare(small_onnx, "fp16", [])


def test_layers_that_a_typed_file_keeps_are_named(small_onnx: Path, tmp_path: Path) -> None:
    kept = {"trunk/some_layer": "overflows"}
    source = read_onnx(small_onnx)
    spec = spec_of(source, "small")
    parts = split(onnx.load_from_string(source.data), spec)
    half = {name: to_half(part) for name, part in parts.items()}
    graph = compose_typed(TypedSubnetworks(half, "fp16", "portable"), spec)
    metadata = {"blu_spec": spec.to_json(), "blu_precision": "fp16", "blu_fallback_layers": json.dumps(kept)}
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, tmp_path / "typed.onnx")
    assert prepare(tmp_path / "typed.onnx", "fp16", []).fallback_layers == kept


def test_batches_and_sizes_as_people_write_them() -> None:
    assert parse_batch("1,4,8") == Batch(1, 4, 8) and parse_batch("4") == Batch(4, 4, 4)
    for bad in ("8,4,1", "0,1,2", "1,2", "many", "", "1,,2"):
        with pytest.raises(UsageError, match="not a range of batch sizes"):
            parse_batch(bad)
    assert [parse_size(text) for text in ("4G", "512M", "1.5GiB", "1000")] == [2**32, 2**29, 3 * 2**29, 1000]
    for bad in ("", "4T", "-1G", "0"):
        with pytest.raises(UsageError, match="not an amount of memory"):
            parse_size(bad)
