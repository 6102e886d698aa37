from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.errors import CheckFailedError, UsageError
from blu_export.parity.verify import TOLERANCES, settings_of, spec_differences, verify
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec

SPEC = ModelSpec(class_names=("BG", "coat", "shoe"), image_min_dim=128, image_max_dim=128, detection_max_instances=10)
PHOTO = np.zeros((128, 128, 3), np.uint8)


class FixedRunner(Runner):
    """Finds the same rows (y1, x1, y2, x2, class, score) on every photo; masks are full."""

    runtime = "fixed"
    device = "CPU"

    def __init__(self, rows: list[tuple[float, ...]], precision: str = "float32", spec: ModelSpec = SPEC) -> None:
        self.spec, self.precision = spec, precision
        self.detections = np.zeros((1, 10, 6), np.float32)
        if rows:
            self.detections[0, : len(rows)] = rows
        self.masks = np.ones((1, 10, 28, 28), np.float32)

    def run(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> Any:
        return self.detections, self.masks


def boxes(count: int, side: float = 0.25) -> list[tuple[float, ...]]:
    """Up to 16 boxes on a grid, which do not touch."""
    return [(i // 4 / 4, i % 4 / 4, i // 4 / 4 + side, i % 4 / 4 + side, 1, 0.9 - i / 100) for i in range(count)]


def test_equal_models_pass() -> None:
    report = verify(FixedRunner(boxes(5)), FixedRunner(boxes(5)), [PHOTO, PHOTO])
    assert report.passed
    report.require()
    assert (report.matched, report.total, len(report.photos)) == (10, 10, 2)
    values = json.loads(json.dumps(report.to_json()))
    assert values["passed"] is True
    assert values["matched"] == values["instances"] == 10
    assert values["median_mask_iou"] == values["min_mask_iou"] == 1
    assert values["max_box_error_px"] == values["max_score_error"] == 0
    assert [check["passed"] for check in values["checks"]] == [True] * 3
    assert sum("✓" in line for line in report.lines()) == 3


@pytest.mark.parametrize(("precision", "lost", "passes"), [
    ("float32", 0, True), ("float32", 1, False), ("fp16", 1, False), ("int8", 1, False)])  # fmt: skip
def test_lost_instances_fail_below_the_tolerance(precision: str, lost: int, passes: bool) -> None:
    report = verify(FixedRunner(boxes(10)), FixedRunner(boxes(10 - lost), precision), [PHOTO])
    assert report.tolerance == TOLERANCES[precision]
    assert report.passed == passes
    assert report.checks[1].value == pytest.approx(1 - lost / 10)
    if not passes:
        with pytest.raises(CheckFailedError, match=r"matched instances 0\.9000 \(at least"):
            report.require()


def test_of_few_instances_one_on_the_threshold_may_be_lost() -> None:
    spec = SPEC.replace(detection_min_confidence=0.7)
    doubtful = [*boxes(8)[:7], (0.5, 0.75, 0.75, 1, 1, 0.705)]
    clear = [*boxes(8)[:7], (0.5, 0.75, 0.75, 1, 1, 0.8)]
    for last, passes in ((doubtful, True), (clear, False)):
        report = verify(FixedRunner(last, spec=spec), FixedRunner(last[:7], spec=spec), [PHOTO])
        assert report.passed is passes
        assert "judged on 8 instances of 1 photo: give --images" in "\n".join(report.lines())
        assert report.to_json()["few"].startswith("judged on 8 instances")
    # Of many instances it counts as any other, and two are never forgiven.
    assert verify(FixedRunner(doubtful, spec=spec), FixedRunner(last[:7], spec=spec), [PHOTO] * 8).passed is False
    assert verify(FixedRunner(doubtful, spec=spec), FixedRunner(last[:7], spec=spec), [PHOTO] * 2).passed is False


def test_what_both_models_assume_is_said_beside_the_parity() -> None:
    spec = SPEC.replace(assumed=("class_names", "image_max_dim"))
    report = verify(FixedRunner(boxes(5)), FixedRunner(boxes(5), spec=spec), [PHOTO])
    said = "equal to fixed with these assumptions: image_max_dim 128; class names coat, shoe …"
    assert said in "\n".join(report.lines())
    assert report.to_json()["assumed"] == "image_max_dim 128; class names coat, shoe …"


def test_extra_instances_fail_too() -> None:
    assert not verify(FixedRunner(boxes(5)), FixedRunner(boxes(6)), [PHOTO]).passed


def test_masks_that_differ_fail() -> None:
    candidate = FixedRunner(boxes(4))
    candidate.masks[:, :, :14] = 0
    report = verify(FixedRunner(boxes(4)), candidate, [PHOTO])
    assert [check.passed for check in report.checks] == [True, True, False]
    assert report.to_json()["median_mask_iou"] == pytest.approx(0.5, abs=0.05)
    assert "mask IoU 0." in report.worst.worst_instance()


def test_nothing_found_proves_nothing() -> None:
    report = verify(FixedRunner([]), FixedRunner([]), [PHOTO])
    assert not report.passed
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["checks"][1]["value"] is None
    with pytest.raises(CheckFailedError, match="instances to compare 0"):
        report.require()


def test_the_worst_photo_and_instance_are_named(tmp_path: Path) -> None:
    from PIL import Image

    paths = [tmp_path / f"{name}.png" for name in ("good", "bad")]
    for path in paths:
        Image.fromarray(PHOTO).save(path)

    class OnceWrong(FixedRunner):
        calls = 0

        def run(self, canvas: Any, window: Any) -> Any:
            self.calls += 1
            detections = self.detections.copy()
            if self.calls == 2:
                detections[0, 1, 4] = 2
            return detections, self.masks

    report = verify(FixedRunner(boxes(3)), OnceWrong(boxes(3)), paths)
    assert report.worst.name == str(paths[1])
    assert "0.8900" in report.worst.worst_instance()
    assert report.worst.worst_instance().startswith(("coat", "shoe"))
    assert report.worst.worst_instance().endswith("only")


def test_other_models_and_no_photos_are_refused() -> None:
    other = SPEC.replace(class_names=("BG", "coat", "hat"), image_min_dim=64)
    with pytest.raises(UsageError, match="differ in class_names, image_min_dim"):
        verify(FixedRunner(boxes(1)), FixedRunner(boxes(1), spec=other), [PHOTO])
    with pytest.raises(UsageError, match="no images"):
        verify(FixedRunner(boxes(1)), FixedRunner(boxes(1)), [])


def test_settings_carry_a_whole_spec() -> None:
    spec = SPEC.replace(image_resize_mode="pad64", mean_pixel=(1, 2.5, 3), rpn_anchor_ratios=(0.5, 1, 3))
    copy = ModelSpec(class_names=spec.class_names).with_settings(settings_of(spec))
    assert spec_differences(spec, copy) == []
    assert spec_differences(spec, SPEC) == ["image_resize_mode", "mean_pixel", "rpn_anchor_ratios"]


# ---- The command


def blu(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    from blu_export.cli.main import main

    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    output = capsys.readouterr()
    return int(caught.value.code or 0), output.out, output.err


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photo: NDArray[np.uint8]) -> Path:
    from PIL import Image

    folder = tmp_path_factory.mktemp("photos")
    for name in ("a", "b", "c"):
        Image.fromarray(photo if name == "a" else np.rot90(photo, "bc".index(name) + 1)).save(folder / f"{name}.png")
    return folder


def test_an_export_passes_against_its_weights(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path], photos: Path
) -> None:
    code, out, _ = blu(capsys, "verify", *pair, "--images", photos, "--limit", 2, "--json")
    values = json.loads(out)
    assert code == 0
    assert values["images"] == 2
    assert values["instances"] > 10
    assert values["reference"] == "keras float32 on CPU"
    assert "stages" not in values


def test_weights_run_with_the_settings_of_the_export(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(pair[1])
    spec = ModelSpec.from_json(next(p.value for p in model.metadata_props if p.key == "blu_spec"))
    onnx.helper.set_model_props(
        model, {"blu_spec": spec.replace(class_names=("none", "x", "y", "z")).to_json(), "blu_target": "portable"}
    )
    onnx.save(model, tmp_path / "renamed.onnx")
    renamed = tmp_path / "renamed.onnx"
    assert blu(capsys, "verify", pair[0], renamed, "--images", photos, "--limit", 1)[0] == 0
    assert blu(capsys, "verify", renamed, pair[0], "--images", photos, "--limit", 1)[0] == 0
    code, _, err = blu(capsys, "verify", pair[1], renamed, "--images", photos, "--limit", 1)
    assert code == 2
    assert "they differ in class_names" in err


def test_no_photos_is_a_usage_error(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    code, _, err = blu(capsys, "verify", *pair, "--images", tmp_path)
    assert code == 2
    assert "no photos" in err


def test_a_changed_model_fails_and_its_stage_is_named(
    capsys: pytest.CaptureFixture[str], pair: tuple[Path, Path], photos: Path, tmp_path: Path
) -> None:
    import onnx

    model = onnx.load(pair[1])
    weight = next(w for w in model.graph.initializer if w.name == "trunk/fpn_p3/kernel")
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    code, out, _ = blu(capsys, "verify", pair[1], tmp_path / "changed.onnx", "--images", photos, "--stages")
    assert code == 1
    assert "✗ matched instances" in out
    assert "first to drift: P3" in out
