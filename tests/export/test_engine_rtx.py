"""Engines that are really built, by TensorRT-RTX, on a machine without a GPU."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
from PIL import Image

from blu_export.cli.main import main
from blu_export.embedded import embedded
from blu_export.errors import CheckFailedError, ModelFileError, UsageError
from blu_export.export.engine import Request, build_engine
from blu_export.export.engine_graph import prepare
from blu_export.tensorrt.builder import BuildOptions, build
from blu_export.tensorrt.libraries import is_installed, tensorrt_rtx
from blu_export.tensorrt.sidecar import UNKNOWN, Batch, Canvases, read_sidecar

pytestmark = pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="needs the extra rtx")
T4, RTX3090 = (7, 5), (8, 6)


@pytest.fixture(scope="module")
def trt() -> ModuleType:
    return tensorrt_rtx()


@pytest.fixture(autouse=True)
def small_model_prepared_once(monkeypatch: pytest.MonkeyPatch, prepare_once: Any) -> None:
    monkeypatch.setattr("blu_export.export.engine.prepare", prepare_once)


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of ``blu build-engine``."""
    try:
        main(["build-engine", *(str(a) for a in arguments)])
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_libraries_are_found_without_environment_variables() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    code = "from blu_export.tensorrt.libraries import tensorrt_rtx as t; print(t().get_nv_onnx_parser_version())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


def test_a_t4_engine_and_what_its_sidecar_says(
    small_onnx: Path, demo_photo: Path, tmp_path: Path, trt: ModuleType, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.engine"
    # One photo: random weights leave near-ties, of which a second photo has one more than the bound allows.
    arguments = ("--fp16", "--target", "t4", "--batch", "1,2,4", "--calibration", demo_photo, "-o", path)
    code, out, err = run(capfd, small_onnx, *arguments)
    assert (code, out) == (0, f"{path}\n"), err
    assert "matched instances" in err and "was not loaded, inspected or run" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.engine", "small.engine.json"]
    sidecar = read_sidecar(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert sidecar.engine_sha256 == digest and digest in err
    assert sidecar.onnx_sha256 == hashlib.sha256(small_onnx.read_bytes()).hexdigest()
    assert (sidecar.builder, sidecar.builder_version) == ("tensorrt-rtx", trt.__version__)
    assert (sidecar.target, sidecar.capability, sidecar.precision) == ("t4", T4, "fp16")
    assert sidecar.batch == Batch(1, 2, 4)
    assert isinstance(sidecar.typed_share, float) and sidecar.typed_share >= 0.95
    assert sidecar.reduced_share == UNKNOWN and "not loaded" in sidecar.reduced_note
    assert sidecar.parity is None and sidecar.emulation is not None and sidecar.emulation["passed"]
    assert sidecar.built_on == "" and sidecar.log["errors"] == []
    # What it says to rebuild it with does.
    path.unlink()
    assert run(capfd, *shlex.split(sidecar.rebuild)[2:])[0] == 0
    again = read_sidecar(path)
    assert (again.spec, again.batch, again.capability) == (sidecar.spec, sidecar.batch, sidecar.capability)


def test_one_engine_of_all_canvases_that_fit(
    small_onnx: Path, demo_photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "fit.engine"
    options = ["--canvas", "fit", "--target", "t4", "--batch", "1,2,4", "--calibration", demo_photo, "-o", path]
    code, _, err = run(capfd, small_onnx, *options)
    assert code == 0, err
    assert "canvases from 64x64 to " in err and "matched instances" in err
    sidecar = read_sidecar(path)
    side = sidecar.spec.image_max_dim
    assert sidecar.spec.image_resize_mode == "fit" and sidecar.canvases.largest == (side, side)
    assert sidecar.emulation is not None and sidecar.emulation["passed"] and sidecar.log["errors"] == []
    assert "--canvas fit" in sidecar.rebuild


def test_a_pad64_file_is_an_engine_too(small_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(small_onnx)
    for entry in model.metadata_props:
        entry.value = entry.value.replace('"square"', '"pad64"')
    for dimension in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        dimension.dim_param = "side"
    onnx.save(model, tmp_path / "pad64.onnx")
    request = Request(tmp_path / "pad64.onnx", "float32", "sm86", output=tmp_path / "pad64.engine", verify=False)
    _, sidecar = build_engine(request, [], None, lambda line: None)
    assert sidecar.canvases == Canvases.of(sidecar.spec) and not sidecar.canvases.fixed


@pytest.mark.long  # tests/model converts such a model each time
def test_an_engine_of_four_channels(
    make_onnx: Callable[[str], Path], demo_photo: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo, engine = tmp_path / "photo.png", tmp_path / "four.engine"
    with Image.open(demo_photo) as image:
        gray = image.convert("L")
        Image.merge("RGBA", (*image.convert("RGB").split(), gray)).save(photo)
    arguments = (make_onnx("small-four"), "--fp16", "--target", "t4", "-o", engine)
    code, out, err = run(capfd, *arguments)
    assert (code, out) == (2, ""), err
    assert "has 3 channels, and the model takes 4" in err and "--calibration" in err
    code, _, err = run(capfd, *arguments, "--calibration", photo)
    assert code == 0, err
    assert "matched instances" in err
    assert read_sidecar(engine).spec.image_channel_count == 4


def test_one_engine_serves_one_card(small_onnx: Path, demo_photo: Path, trt: ModuleType, prepare_once: Any) -> None:
    prepared = prepare_once(small_onnx, "fp16", [demo_photo])
    engines = {
        capability: build(
            trt,
            prepared.model.SerializeToString(),
            BuildOptions(Batch(1, 1, 8), Canvases.of(prepared.spec), capability),
            prepared.names,
        ).engine
        for capability in (T4, RTX3090)
    }
    assert engines[T4] != engines[RTX3090]
    assert min(map(len, engines.values())) > 1_000_000


@pytest.mark.parametrize("target", ["t4", "rtx3090"])
def test_int8_builds(small_onnx: Path, tmp_path: Path, demo_photo: Path, target: str) -> None:
    lines: list[str] = []
    request = Request(small_onnx, "int8", target, output=tmp_path / "small.engine", verify=False)
    _, sidecar = build_engine(request, [demo_photo], None, lines.append)
    assert sidecar.precision == "int8" and sidecar.typed_share == 1.0
    assert any("a guess" in line for line in lines), "one photo is too few for ranges, which must be said"
    assert any("prefer --fp16" in line for line in lines) == (target == "t4")


def test_float32_for_a_t4_is_refused_by_node_and_stage(
    small_onnx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, small_onnx, "--fp32", "--target", "t4", "-o", tmp_path / "small.engine")
    assert (code, out) == (3, "")
    assert "refuses node box_head/" in err and "of stage box_head" in err
    assert "build with --fp16, or with --builder tensorrt" in err
    assert not list(tmp_path.iterdir())


def test_float32_for_an_ampere_card(small_onnx: Path, tmp_path: Path, demo_photo: Path) -> None:
    request = Request(small_onnx, "float32", "sm86", output=tmp_path / "small.engine", verify=False)
    path, sidecar = build_engine(request, [demo_photo], None, lambda line: None)
    assert path.stat().st_size > 1_000_000 and sidecar.typed_share == 0.0


def test_a_node_that_is_refused_is_named_with_its_stage(small_onnx: Path, trt: ModuleType) -> None:
    model = onnx.load(small_onnx)  # portable, so with operators that only processors have
    names = {n.name for n in model.graph.node}
    prepared = prepare(small_onnx, "float32", [])
    with pytest.raises(ModelFileError, match=r"refuses node (\w+)/\S+ of stage \1: .*(NonZero|NonMaxSuppression)"):
        build(trt, model.SerializeToString(), BuildOptions(Batch(1, 1, 1), Canvases.of(prepared.spec), T4), names)


def test_a_capability_it_does_not_build_for_is_said_at_once(small_onnx: Path, tmp_path: Path) -> None:
    request = Request(small_onnx, "fp16", "h100", output=tmp_path / "small.engine")
    with pytest.raises(UsageError, match=r"does not build for sm90\. It builds for sm75, .*sm86"):
        build_engine(request, [], None, lambda line: None)


def test_a_file_that_half_does_not_fit_is_no_fp16_engine(small_onnx: Path, tmp_path: Path, demo_photo: Path) -> None:
    model = onnx.load(small_onnx)
    for tensor in model.graph.initializer:
        # Layers before a ReLU6: their own numbers leave half's range, and nothing after them does.
        if re.fullmatch(r"trunk/block\d+_(expand|depthwise)_conv/kernel", tensor.name):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 1e6, tensor.name))
    path = tmp_path / "loud.onnx"
    onnx.save(model, path)
    request = Request(path, "fp16", "t4", output=tmp_path / "loud.engine")
    with pytest.raises(CheckFailedError, match=r"learned layers are in float32.*trunk/.*--fp32"):
        build_engine(request, [demo_photo], None, lambda line: None)
    assert [p.name for p in tmp_path.iterdir()] == ["loud.onnx"]


@pytest.mark.long  # the embedded model, below, is built each time
@pytest.mark.parametrize("name", ["garments", "resnet50", "resnet101"])
def test_full_sized_engines(make_onnx: Callable[[str], Path], demo_photo: Path, name: str, trt: ModuleType) -> None:
    prepared = prepare(make_onnx(name), "fp16", [demo_photo])
    assert prepared.layers.share == 1.0, prepared.fallback_layers
    weights = sum(len(t.raw_data) for t in prepared.model.graph.initializer if t.name.startswith("trunk/"))
    model = prepared.model.SerializeToString()
    for capability in (T4, RTX3090):
        options = BuildOptions(Batch(1, 1, 8), Canvases.of(prepared.spec), capability)
        built = build(trt, model, options, prepared.names)
        print(
            f"{name} for sm{capability[0]}{capability[1]}: {len(built.engine) / 2**20:.0f} MiB, {built.seconds:.1f} s"
        )
        assert built.log["errors"] == []
        assert len(built.engine) > weights


def test_the_embedded_model_is_what_is_built_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        embedded()
    except ModelFileError as error:
        pytest.skip(f"{error.what} (it is still being trained)")
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capfd, "--fp16")
    assert (code, out) == (0, "garments.fp16.sm75.engine\n"), err
    assert json.loads((tmp_path / "garments.fp16.sm75.engine.json").read_text())["emulation"]["passed"]
