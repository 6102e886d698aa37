"""Which file and runtime `auto` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from blu_export.errors import ModelFileError
from blu_export.runtime import RunnerOptions, choice, load_runner
from blu_export.runtime.choice import choose
from blu_export.runtime.tuning import Known, precision_path, recall, remember

FakeOnnx = Callable[..., Path]
PASSED = {"passed": True, "instances": 10, "matched": 10}
WEIGHTS = {"weights_sha256": "1" * 64}


@pytest.fixture
def family(fake_onnx: FakeOnnx, tmp_path: Path) -> Callable[..., Path]:
    """``family(parity, provenance)``: model.onnx with a model.int8.onnx of that parity and origin beside it."""

    def make(parity: object = PASSED, provenance: dict[str, str] = WEIGHTS, **fields: object) -> Path:
        exact = tmp_path / "model.onnx"
        fake_onnx(provenance=WEIGHTS).rename(exact)
        metadata = {"blu_precision": "int8", "blu_parity": json.dumps(parity)}
        fake_onnx(metadata, provenance=provenance, **fields).rename(tmp_path / "model.int8.onnx")
        return exact

    return make


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLU_CACHE", str(tmp_path / "cache"))


def test_names_of_precisions() -> None:
    assert precision_path(Path("a/coco.onnx"), "int8") == Path("a/coco.int8.onnx")
    assert precision_path(Path("a/coco.int8.onnx"), "fp16") == Path("a/coco.fp16.onnx")
    assert precision_path(Path("a/coco.int8.onnx"), "float32") == Path("a/coco.onnx")


def test_int8_stands_in_on_a_processor(family: Callable[..., Path]) -> None:
    found = choose(family(), "auto", "auto", None)
    assert (found.path.name, found.runtime) == ("model.int8.onnx", "onnxruntime")
    assert "usually the fastest for int8" in found.why and "10 of 10 instances" in found.why


@pytest.mark.parametrize(("device", "there"), [("cuda:1", False), (None, True)])
def test_half_stands_in_on_a_gpu(
    family: Callable[..., Path],
    fake_onnx: FakeOnnx,
    memory: None,
    monkeypatch: pytest.MonkeyPatch,
    device: str | None,
    there: bool,
) -> None:
    monkeypatch.setattr(choice, "takes_gpu", lambda: there)
    path = family()
    remember(path, {(path, name): seconds for name, seconds in (("onnxruntime", 0.4), ("openvino", 0.3))})
    found = choose(path, "auto", "auto", device)  # neither int8 nor what was measured on the processor
    assert (found.path, found.runtime, found.lanes) == (path, "onnxruntime", 1)
    half = path.with_name("model.fp16.onnx")
    fake_onnx({"blu_precision": "fp16", "blu_parity": json.dumps(PASSED)}, provenance=WEIGHTS).rename(half)
    assert choose(path, "auto", "auto", device).path == half
    assert choose(path, "auto", "auto", "cpu").path.name == "model.int8.onnx"


@pytest.mark.parametrize(
    "arguments",
    [
        {"parity": {"passed": False, "instances": 10, "matched": 5}},
        {"parity": "nonsense"},
        {"provenance": {"weights_sha256": "2" * 64}},
        {"provenance": {}},
        {"detection_min_confidence": 0.5},
    ],
)
def test_what_may_not_stand_in(family: Callable[..., Path], arguments: dict[str, object]) -> None:
    path = family(**arguments)
    assert choose(path, "auto", "auto", None).path == path


def canvas_metadata(box: float = 0.001, mask: float = -0.003) -> dict[str, str | None]:
    changes = {"box": {"delta": box}, "mask": {"delta": mask}}
    return {
        "blu_precision": "float32",
        "blu_parity": json.dumps(PASSED),
        "blu_canvas": json.dumps({"average_precision": changes}),
    }


def test_canvases_that_fit_stand_in(family: Callable[..., Path], fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    path = family()
    fake_onnx(canvas_metadata(), provenance=WEIGHTS, image_resize_mode="fit").rename(tmp_path / "model.fit.onnx")
    found = choose(path, "auto", "auto", "cpu")
    assert found.path.name == "model.fit.onnx"
    assert "AP +0.1 (box) and -0.3 (mask) for its canvas" in found.why
    int8 = {"blu_precision": "int8", "blu_parity": json.dumps(PASSED)}
    fake_onnx(int8, provenance=WEIGHTS, image_resize_mode="fit").rename(tmp_path / "model.fit.int8.onnx")
    assert choose(path, "auto", "auto", "cpu").path.name == "model.fit.int8.onnx"
    assert choose(path, "auto", "file", "cpu").path == path
    assert choose(tmp_path / "model.fit.onnx", "auto", "auto", "cpu").path.name == "model.fit.int8.onnx"


@pytest.mark.parametrize(
    ("metadata", "fields"),
    [
        (canvas_metadata(box=-0.0031), {}),
        (canvas_metadata(mask=0.5), {}),
        (canvas_metadata() | {"blu_canvas": None}, {}),
        (canvas_metadata() | {"blu_canvas": "{}"}, {}),
        (canvas_metadata() | {"blu_parity": json.dumps(PASSED | {"passed": False})}, {}),
        (canvas_metadata(), {"detection_min_confidence": 0.5}),
        (canvas_metadata(), {"provenance": {"weights_sha256": "2" * 64}}),
        (canvas_metadata(), {"image_resize_mode": "pad64"}),
    ],
)
def test_canvases_that_may_not_stand_in(
    family: Callable[..., Path], fake_onnx: FakeOnnx, tmp_path: Path, metadata: dict[str, str | None], fields: object
) -> None:
    values = {"provenance": WEIGHTS, "image_resize_mode": "fit"} | dict(fields)  # type: ignore[call-overload]
    path = family({"passed": False})
    fake_onnx(metadata, **values).rename(tmp_path / "model.fit.onnx")
    assert choose(path, "auto", "auto", "cpu").path == path


def test_the_file_as_it_is_unless_asked(family: Callable[..., Path]) -> None:
    path = family()
    with load_runner(path) as runner:
        assert runner.precision == "float32"
    with load_runner(path, RunnerOptions(precision="int8")) as runner:
        assert runner.precision == "int8"
    with load_runner(path.with_name("model.int8.onnx"), RunnerOptions(precision="float32")) as runner:
        assert runner.precision == "float32"
    with pytest.raises(ModelFileError, match=r"there is no model\.fp16\.onnx beside it"):
        load_runner(path, RunnerOptions(precision="fp16"))


@pytest.mark.parametrize(
    "arguments", [{"provenance": {"weights_sha256": "2" * 64}}, {"provenance": {}}, {"detection_min_confidence": 0.5}]
)
def test_another_model_beside_it_is_not_taken_for_its_int8(
    family: Callable[..., Path], arguments: dict[str, object]
) -> None:
    with pytest.raises(ModelFileError, match="other weights or settings"):
        load_runner(family(**arguments), RunnerOptions(precision="int8"))


def test_a_file_is_not_what_its_name_says(family: Callable[..., Path]) -> None:
    path = family()
    metadata = {"blu_precision": "float32", "blu_parity": json.dumps(PASSED)}
    onnx_file = onnx.load(path)
    onnx.helper.set_model_props(onnx_file, {p.key: p.value for p in onnx_file.metadata_props} | metadata)
    onnx.save(onnx_file, path.with_name("model.int8.onnx"))
    assert choose(path, "auto", "auto", None).path == path
    with pytest.raises(ModelFileError, match="is a float32 model, not int8"):
        load_runner(path, RunnerOptions(precision="int8"))


def test_a_measurement_beats_the_rule(family: Callable[..., Path], memory: None) -> None:
    path = family()
    int8 = path.with_name("model.int8.onnx")
    seconds = {(path, "onnxruntime"): 0.4, (path, "openvino"): 0.3}
    remember(path, seconds)
    assert choose(path, "auto", "file", None).runtime == "openvino"
    # int8 was not measured: the rule decides among the files.
    assert choose(path, "auto", "auto", None).path == int8
    remember(path, seconds | {(int8, "onnxruntime"): 1.1, (int8, "openvino"): 1.2})
    assert choose(path, "auto", "auto", None).path == path
    remember(path, seconds | {(int8, "onnxruntime"): 0.1, (int8, "openvino"): 0.2}, {(int8, "onnxruntime"): 3})
    found = choose(path, "auto", "auto", None)
    assert (found.path, found.runtime, found.lanes) == (int8, "onnxruntime", 3)
    assert "measured" in found.why
    assert choose(path, "openvino", "auto", None).path == int8


def test_of_runtimes_that_are_alike_the_rule_decides(family: Callable[..., Path], memory: None) -> None:
    path = family()
    remember(path, {(path, "onnxruntime"): 0.113, (path, "openvino"): 0.110})
    found = choose(path, "auto", "file", None)
    assert found.runtime == "onnxruntime"
    assert "as fast as openvino" in found.why
    remember(path, {(path, "onnxruntime"): 0.110, (path, "openvino"): 0.113})
    assert choose(path, "auto", "file", None).why.startswith("the fastest here")
    remember(path, {(path, "onnxruntime"): 0.120, (path, "openvino"): 0.110})
    assert choose(path, "auto", "file", None).runtime == "openvino"
    # Files are not runtimes: the faster one is taken however near they are.
    int8 = path.with_name("model.int8.onnx")
    remember(
        path,
        {(path, "onnxruntime"): 0.103, (path, "openvino"): 0.2, (int8, "onnxruntime"): 0.102, (int8, "openvino"): 0.1},
    )
    found = choose(path, "auto", "auto", None)
    assert (found.path, found.runtime) == (int8, "onnxruntime")


def test_the_advice_is_a_whole_command(fake_onnx: FakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my models"
    folder.mkdir()
    path = folder / "coco.onnx"
    fake_onnx(provenance={"weights_file": "mask_rcnn_coco.h5"}).rename(path)

    def advice(path: Path, precision: str) -> str:
        with pytest.raises(ModelFileError) as caught:
            choose(path, "auto", precision, None)
        return caught.value.fix

    weights = "Write it with: blu export onnx --weights mask_rcnn_coco.h5"
    assert advice(path, "int8") == f"{weights} --int8 --calibration PHOTOS -o '{folder}/coco.int8.onnx'"
    half = folder / "hat.fp16.onnx"
    fake_onnx({"blu_precision": "fp16"}).rename(half)
    assert advice(half, "float32") == f"Write it with: blu export onnx --weights WEIGHTS.h5 -o '{folder}/hat.onnx'"
    monkeypatch.setattr(choice, "embedded", lambda: path)
    assert advice(path, "fp16").startswith("Write it with: blu export onnx --fp16 --calibration PHOTOS -o")


def test_the_command_that_measures_names_the_file(family: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = family()
    assert f"blu benchmark {path} measures it here" in choose(path, "auto", "auto", None).why
    monkeypatch.setattr(choice, "embedded", lambda: path)
    assert "; blu benchmark measures it here" in choose(path, "auto", "auto", None).why


@pytest.mark.parametrize(
    ("parity", "warning"),
    [
        ({"passed": False, "instances": 11, "matched": 9}, "9 of 11 instances matched"),
        ({"passed": False}, "? of ? instances matched"),
        (PASSED, None),
        ("nonsense", None),
    ],
)
def test_a_file_that_failed_its_parity_check_says_so(
    fake_onnx: FakeOnnx, caplog: pytest.LogCaptureFixture, parity: object, warning: str | None
) -> None:
    path = fake_onnx({"blu_parity": json.dumps(parity)})
    load_runner(path, RunnerOptions("onnxruntime")).close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ([f"{path} failed its parity check: {warning} at its export"] if warning else [])


def test_a_measurement_of_another_file_is_forgotten(family: Callable[..., Path], memory: None) -> None:
    path = family()
    remember(path, {(path, "onnxruntime"): 0.4, (path, "openvino"): 0.3})
    assert recall(path).seconds
    os.utime(path, (1, 1))
    assert recall(path) == Known()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": 1}', "null"])
def test_a_broken_memory_is_no_memory(family: Callable[..., Path], memory: None, content: str) -> None:
    path = family()
    remember(path, {(path, "onnxruntime"): 0.4})
    (record,) = (path.parent / "cache" / "choices").iterdir()
    record.write_text(content)
    assert recall(path) == Known()


def test_many_photos_share_the_threads_of_one(family: Callable[..., Path], memory: None) -> None:
    path = family()
    remember(path, {}, {(path, "onnxruntime"): 4})
    with load_runner(path, RunnerOptions("onnxruntime")) as runner:
        assert runner.lanes == 1
    with load_runner(path, RunnerOptions("onnxruntime", threads=2, throughput=True)) as runner:
        assert runner.lanes == 2
    with load_runner(path, RunnerOptions("onnxruntime", threads=8, throughput=True)) as runner:
        assert runner.lanes == 4
