"""``export_onnx`` and ``blu export onnx``: from weights to a file that proves what it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from blu_export.cli.export_onnx import app, default_name, read_class_names
from blu_export.contract import Metadata
from blu_export.errors import CheckFailedError, ModelFileError, UsageError
from blu_export.export.checked import parity_photos
from blu_export.export.onnx import Exported, export_onnx
from blu_export.export.options import ExportOptions
from blu_export.files import sha256_of
from blu_export.parity.verify import TOLERANCES, Tolerance
from blu_export.runtime import RunnerOptions, load_runner
from blu_export.runtime.onnx_file import read_onnx, spec_of
from blu_export.spec import ModelSpec


@pytest.fixture(scope="session")
def weights(small_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from blu_export.model.weights import save_weights

    path = tmp_path_factory.mktemp("weights") / "small.h5"
    save_weights(small_model, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(1)
    for i in range(2):
        coarse = random.integers(0, 128, (8, 8, 3), dtype=np.uint8).repeat(16, axis=0).repeat(16, axis=1)
        Image.fromarray((coarse + random.integers(0, 60, coarse.shape)).astype(np.uint8)).save(folder / f"{i}.png")
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def exported(weights: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Exported, list[str]]:
    lines: list[str] = []
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    return export_onnx(weights, path, images=photos, tell=lines.append), lines


@pytest.fixture(scope="module")
def parts_once(subnetworks: Any) -> Any:
    """The slow conversion is not what these tests are about."""
    patch = pytest.MonkeyPatch()
    patch.setattr("blu_export.export.learned.subnetworks", lambda model, opset: subnetworks)
    yield
    patch.undo()


def test_the_file_says_what_it_is(exported: tuple[Exported, list[str]], weights: Path) -> None:
    done, _ = exported
    model = read_onnx(done.path)
    spec = spec_of(model, "small.onnx")
    assert spec == done.spec
    assert spec.provenance["weights_sha256"] == sha256_of(weights)
    assert spec.provenance["weights_file"] == "small.h5"
    assert model.metadata["blu_target"] == "portable"
    assert model.precision == "float32"
    parity = model.json_metadata("blu_parity")
    assert parity["passed"] and parity["images"] == 2 and parity["instances"] > 20
    assert parity["worst_image"] in ("0.png", "1.png"), "no folder of this machine in the file"
    assert {"blu", "tensorflow", "tf2onnx", "onnx"} <= set(model.json_metadata("blu_versions"))
    assert done.parity is not None and done.parity.passed
    assert done.nodes == sum(model.op_counts.values())


def test_progress_and_times(exported: tuple[Exported, list[str]]) -> None:
    done, lines = exported
    assert list(done.seconds) == ["read", "convert", "type", "compose", "verify"]
    text = "\n".join(lines)
    for part in ("efficientnet_lite0, 4 classes", "tensors loaded", "converted", "verifying on 2 photos", "✓ matched"):
        assert part in text


def test_the_file_runs(exported: tuple[Exported, list[str]], small_model: Any) -> None:
    with load_runner(exported[0].path, RunnerOptions("onnxruntime")) as runner:
        detections, masks = runner.run(np.full((1, 128, 128, 3), 99, np.uint8), np.float32([[0, 0, 128, 128]]))
    assert detections.shape == (1, 40, 6) and masks.shape == (1, 40, 28, 28)


def test_a_file_that_differs_does_not_get_its_name(
    weights: Path, photos: list[Path], parts_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "float32", Tolerance(matched=1.1, mask_iou=0.99))
    output = tmp_path / "small.onnx"
    output.write_bytes(b"the old one")
    with pytest.raises(CheckFailedError, match=r"small\.failed\.onnx differs .* matched instances") as caught:
        export_onnx(weights, output, images=photos)
    assert "blu verify" in caught.value.fix
    assert output.read_bytes() == b"the old one"
    assert read_onnx(tmp_path / "small.failed.onnx").json_metadata("blu_parity")["passed"] is False


@pytest.mark.parametrize(("given", "used"), [(1, 1), (8, 8), (9, 8), (32, 8), (33, 8)])
def test_calibration_photos_are_compared_on(given: int, used: int) -> None:
    photos, which = parity_photos(range(given))
    assert which == f"{used} of the {given} photo{'s' if given > 1 else ''} for calibration"
    assert len(set(photos)) == used
    assert photos[0] == 0 and photos[-1] >= given * 3 // 4, "over all of them"
    assert parity_photos(range(given), ["a", "b"]) == (["a", "b"], "2 photos")


def test_without_photos_the_demo_photo_is_all_there_is_and_the_error_says_what_helps(
    weights: Path, parts_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "fp16", Tolerance(matched=1.1, mask_iou=0.99))
    lines: list[str] = []
    with pytest.raises(CheckFailedError) as caught:
        export_onnx(weights, tmp_path / "a.onnx", ExportOptions(precision="fp16"), tell=lines.append)
    assert "on the demo photo only: give 32 or more photos of your own with --calibration" in lines
    assert "verifying on the demo photo" in lines
    for remedy in ("32 or more photos", "--calibration", "--images", "blu verify"):
        assert remedy in caught.value.fix


def test_nothing_to_compare_is_no_proof(weights: Path, parts_once: Any, tmp_path: Path) -> None:
    black = tmp_path / "black.png"
    Image.new("RGB", (128, 128)).save(black)
    with pytest.raises(CheckFailedError, match="Nothing was found") as caught:
        export_onnx(
            weights, tmp_path / "a.onnx", ExportOptions(settings=["detection_min_confidence=1"]), images=[black]
        )
    assert "--images" in caught.value.fix


def test_names_settings_and_form(weights: Path, parts_once: Any, tmp_path: Path) -> None:
    done = export_onnx(
        weights,
        tmp_path / "a.onnx",
        ExportOptions(
            class_names=["coat", "hat", "shoe"],
            settings=["detection_max_instances=7"],
            target="tensorrt",
            verify=False,
        ),
    )
    model = read_onnx(done.path)
    spec = spec_of(model, "a.onnx")
    assert spec.class_names == ("BG", "coat", "hat", "shoe")
    assert model.outputs[0].shape == ("batch", 7, 6)
    assert model.metadata["blu_target"] == "tensorrt"
    assert "NonMaxSuppression" not in model.op_counts
    assert "blu_parity" not in model.metadata and done.parity is None


def test_the_same_input_gives_the_same_file(weights: Path, parts_once: Any, tmp_path: Path) -> None:
    files = [export_onnx(weights, tmp_path / name, ExportOptions(verify=False)).path for name in ("a.onnx", "b.onnx")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "coreml"}, "no target coreml"),
        ({"opset": 3}, "no opset 3"),
        ({"precision": "int4"}, "no precision int4"),
        ({"settings": ["no_field=1"]}, "no spec field no_field"),
        ({"class_names": ["a"]}, "1 class names"),
        ({"compress_to_fp16": True, "target": "tensorrt"}, "portable float32"),
    ],
)
def test_impossible_requests_fail_at_once(
    arguments: dict[str, Any], message: str, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blu_export.export.learned.subnetworks", lambda *_: pytest.fail("converted in vain"))
    with pytest.raises(UsageError, match=message):
        export_onnx(weights, tmp_path / "a.onnx", ExportOptions(**arguments))
    assert not list(tmp_path.iterdir())


def test_the_demo_photo_does_not_do_for_four_channels(weights: Path, tmp_path: Path) -> None:
    import h5py

    four = tmp_path / "four.h5"
    four.write_bytes(weights.read_bytes())
    with h5py.File(four, "a") as file:
        kernel = file["stem_conv/stem_conv/kernel:0"][()]
        del file["stem_conv/stem_conv/kernel:0"]
        file["stem_conv/stem_conv/kernel:0"] = np.concatenate([kernel, kernel[:, :, :1]], axis=2)
        spec = ModelSpec.from_json(file.attrs["blu_spec"], "four.h5")
        spec = spec.replace(image_channel_count=4, mean_pixel=(1.0, 2.0, 3.0, 4.0))
        file.attrs["blu_spec"] = spec.to_json().encode()
    lines: list[str] = []
    with pytest.raises(UsageError, match="takes 4 channels, and the demo photo has 3.*--images.*--no-verify"):
        export_onnx(four, tmp_path / "a.onnx", tell=lines.append)
    assert not any(line.startswith("converted") for line in lines)
    export_onnx(four, tmp_path / "a.onnx", ExportOptions(verify=False))
    assert spec_of(read_onnx(tmp_path / "a.onnx"), "a.onnx").image_channel_count == 4


def test_weights_that_do_not_fit_write_nothing(weights: Path, tmp_path: Path) -> None:
    import h5py

    broken = tmp_path / "broken.h5"
    broken.write_bytes(weights.read_bytes())
    with h5py.File(broken, "a") as file:
        del file["fpn_p4"]["fpn_p4"]["kernel:0"]
        file["fpn_p4"]["fpn_p4"].create_dataset("kernel:0", data=np.zeros((1, 1, 2, 3), np.float32))
    with pytest.raises(ModelFileError, match=r"fpn_p4/kernel is \[1, 1, 2, 3\], not"):
        export_onnx(broken, tmp_path / "a.onnx")
    garbage = tmp_path / "garbage.h5"
    garbage.write_bytes(b"no HDF5")
    with pytest.raises(ModelFileError, match=r"garbage\.h5"):
        export_onnx(garbage, tmp_path / "a.onnx")
    assert not list(tmp_path.glob("*.onnx"))


def test_command_line(
    weights: Path, photos: list[Path], parts_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--weights", str(weights), "--images", str(photos[0].parent), "--json", "--tensors"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values["path"] == "small.onnx"
    assert values["sha256"] == sha256_of(tmp_path / "small.onnx")
    assert values["tensors"]["missing"] == [] and len(values["tensors"]["loaded"]) > 200
    assert values["parity"]["passed"]
    assert "loaded: mrcnn_mask/kernel" in result.stderr
    assert "next: blu infer street.jpg --model small.onnx" in result.stderr


def test_half_by_its_flag(
    weights: Path, photos: list[Path], parts_once: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["-w", str(weights), "--fp16", "--no-verify", "--calibration", str(photos[0])])
    assert (result.exit_code, result.stdout) == (0, "small.fp16.onnx\n")
    with load_runner("small.fp16.onnx", RunnerOptions("onnxruntime", device="cpu")) as runner:
        assert runner.precision == "fp16"
    with pytest.raises(UsageError, match="one precision"):
        CliRunner().invoke(app, ["-w", str(weights), "--fp16", "--int8"], catch_exceptions=False)


def test_class_names_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\ufeffcoat\n\n  long dress \n", "utf-8")
    assert read_class_names(path) == ["coat", "long dress"]
    for content in (b"", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"names\.txt"):
            read_class_names(path)
    with pytest.raises(ModelFileError, match="absent"):
        read_class_names(tmp_path / "absent.txt")


def test_another_canvas_is_compared_with_the_square_one(
    weights: Path, parts_once: Any, photos: list[Path], tmp_path: Path
) -> None:
    wide = tmp_path / "wide.png"
    with Image.open(photos[0]) as photo:
        photo.crop((0, 0, 128, 60)).save(wide)
    tall = str(wide)
    for arguments, shape, name in (
        (["--fit"], ("height", "width"), "fit"),
        (["--canvas", "64x128"], (64, 128), "64x128"),
    ):
        path = tmp_path / "own.onnx"
        command = ["--weights", str(weights), "-o", str(path), "--images", tall, *arguments]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        model = read_onnx(path)
        assert next(t.shape for t in model.inputs if t.name == "canvas")[1:3] == shape
        found = model.json_metadata(Metadata.CANVAS)
        assert found["approximation"] is True and (found["canvas"], found["reference"]) == (name, "square 128x128")
        assert 0 < found["matched"] <= found["instances"] and "average_precision" not in found
        assert model.json_metadata("blu_parity")["passed"] is True
        assert "an approximation" in result.stderr


@pytest.mark.parametrize("arguments", [["--fit", "--canvas", "64x64"], ["--canvas", "64"], ["--canvas", "100x64"]])
def test_impossible_canvases(arguments: list[str], weights: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["--weights", str(weights), "-o", str(tmp_path / "x.onnx"), *arguments])
    assert isinstance(result.exception, UsageError)
    assert not list(tmp_path.iterdir())


def test_default_names() -> None:
    assert default_name(Path("runs/best.h5"), "portable", "float32") == "best.onnx"
    assert default_name(Path("a.weights.h5"), "tensorrt", "int8") == "a.int8.tensorrt.onnx"
