from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.errors import ModelFileError, UsageError
from blu_export.image import mold
from blu_export.parity.stages import STAGES, compare_stages, first_drift, stage_source
from blu_export.runtime import RunnerOptions, load_runner


@pytest.fixture(scope="module")
def tensors(pair: tuple[Path, Path], photo: NDArray[np.uint8]) -> list[Any]:
    """The stages of the .h5 and of the .onnx."""
    found = []
    for path in pair:
        runner = load_runner(path, RunnerOptions("keras" if path.suffix == ".h5" else "auto"))
        found.append(stage_source(runner, path)(mold(photo, runner.spec)))
    return found


def scale_tensor(path: Path, name: str, factor: float, to: Path) -> Path:
    """A copy of an ONNX file with one weight multiplied."""
    import onnx

    model = onnx.load(path)
    weight = next(w for w in model.graph.initializer if w.name == name)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(factor), name))
    onnx.save(model, to)
    return to


def test_an_export_has_the_stages_of_its_weights(tensors: list[Any]) -> None:
    drifts = compare_stages(*tensors, "float32")
    assert [stage.name for stage in drifts] == list(STAGES)
    assert first_drift(drifts) is None
    assert all(tensors[0][name].shape == tensors[1][name].shape for name in STAGES)
    assert np.count_nonzero(tensors[0]["detections"][:, 4]) > 5


@pytest.mark.parametrize(
    ("weight", "stage"),
    [
        ("trunk/fpn_p3/kernel", "P3"),
        ("trunk/rpn_bbox_pred/kernel", "rpn_bbox"),
        ("box_head/mrcnn_class_logits/kernel", "mrcnn_class"),
        ("mask_head/mrcnn_mask/kernel", "masks"),
    ],
)
def test_the_first_stage_that_drifts_is_named(
    pair: tuple[Path, Path], photo: NDArray[np.uint8], tensors: list[Any], tmp_path: Path, weight: str, stage: str
) -> None:
    path = scale_tensor(pair[1], weight, 1.1, tmp_path / "drifted.onnx")
    runner = load_runner(path)
    drifted = first_drift(compare_stages(tensors[0], stage_source(runner, path)(mold(photo, runner.spec)), "float32"))
    assert drifted is not None
    assert drifted.name == stage


def test_rows_that_swap_places_are_no_drift(tensors: list[Any]) -> None:
    swapped = dict(tensors[0])
    order = np.random.default_rng(0).permutation(len(swapped["rois"]))
    for name in ("rois", "mrcnn_class", "mrcnn_bbox"):
        swapped[name] = swapped[name][order]
    assert first_drift(compare_stages(tensors[0], swapped, "float32")) is None


def test_lost_rows_and_values_that_are_no_numbers_are_drift(tensors: list[Any]) -> None:
    lossy = dict(tensors[0])
    lossy["rois"] = lossy["rois"] * (np.arange(len(lossy["rois"])) % 10 > 0)[:, None]
    found = first_drift(compare_stages(tensors[0], lossy, "float32"))
    assert found is not None
    assert found.name == "rois"
    assert found.lost == pytest.approx(0.1, abs=0.02)
    broken = dict(tensors[0], P4=tensors[0]["P4"] * np.nan)
    found = first_drift(compare_stages(tensors[0], broken, "float32"))
    assert found is not None
    assert found.name == "P4"


def test_a_file_without_the_names_is_a_clear_error(fake_onnx: Any) -> None:
    path = fake_onnx()
    with pytest.raises(ModelFileError, match="no tensor named"):
        stage_source(load_runner(path, RunnerOptions("onnxruntime")), path)


def test_an_engine_shows_no_stages(fake_onnx: Any) -> None:
    with pytest.raises(UsageError, match="cannot show"):
        stage_source(load_runner(fake_onnx(), RunnerOptions("onnxruntime")), "model.engine")
