"""Turns, work, and where a graph's time goes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from blu_export.benchmark import timing
from blu_export.benchmark.cold import measure_cold, peak_memory_mib
from blu_export.benchmark.curves import around_the_network, encode, random_detections, random_photo
from blu_export.benchmark.flops import count_flops
from blu_export.benchmark.onnx_stages import _seconds_by_run
from blu_export.benchmark.timing import Timing, settled, take_turns
from blu_export.detector import Detector
from blu_export.errors import BluError
from blu_export.image import Molded, mold, unmold
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.runtime.openvino import OpenVinoRunner
from blu_export.spec import ModelSpec

SPEC = ModelSpec(("BG", "thing"), image_min_dim=64, image_max_dim=64)


def test_candidates_take_turns_and_the_first_is_not_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_YARDSTICK_SIZE", 8)
    calls: list[str] = []
    rounds = take_turns({name: lambda name=name: calls.append(name) for name in "abc"}, repeats=3, warmup=1)
    assert {name: len(seconds) for name, seconds in rounds.seconds.items()} == dict.fromkeys("abc", 3)
    assert ["".join(calls[i : i + 3]) for i in range(0, 12, 3)] == ["cab", "abc", "bca", "cab"]
    assert rounds.spread >= 1


def test_a_settled_detector_has_compiled_for_the_photo(fake_onnx: Callable[..., Path]) -> None:
    path = fake_onnx(image_resize_mode="fit", image_max_dim=256)
    photo = random_photo(100, 200)
    with OpenVinoRunner(path) as runner:
        detector = settled(Detector(runner), photo)
        assert runner._frequent is not None
        assert len(runner._frequent) == 1
        assert detector.runner is runner
    with OnnxRuntimeRunner(path) as never_changes:
        assert not any(settled(Detector(never_changes), photo).timings.values())  # it was not called


def test_a_distribution() -> None:
    times = Timing.of([float(n) for n in range(1, 101)])
    assert (times.p50, times.fastest, times.samples) == (50.5, 1.0, 100)
    assert times.p90 == pytest.approx(90.1) and times.p99 == pytest.approx(99.01)


def test_flops_of_convolutions_and_products() -> None:
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Cast", ["canvas"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["float"], ["image"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["image", "kernel"], ["map"], "trunk/conv", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["detections"], "box_head/fc", transB=1),
    ]
    weights = {"kernel": np.zeros((8, 3, 3, 3), np.float32), "matrix": np.zeros((5, 8), np.float32)}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [
            info("canvas", TensorProto.UINT8, ["batch", 64, 64, 3]),
            info("window", TensorProto.FLOAT, ["batch", 4]),
        ],
        [info("detections", TensorProto.FLOAT, ["batch", 5])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    flops = count_flops(model, (64, 64), detections=3)
    assert flops.by_stage == {"trunk": 2 * 32 * 32 * 8 * 3 * 3 * 3, "box_head": 2 * 5 * 8}
    assert flops.total == sum(flops.by_stage.values())


def test_kernel_times_go_to_their_stage_and_run() -> None:
    def kernel(name: str, start: int, length: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": length}

    events = [
        {"name": "model_run", "ts": 0, "dur": 100},
        kernel("trunk/conv", 1, 10),
        kernel("proposals/Loop", 20, 30),
        kernel("proposals/inside", 25, 5),  # part of the Loop
        kernel("ReorderOutput", 60, 7),
        {"name": "model_run", "ts": 200, "dur": 100},
        kernel("fused trunk/conv", 201, 20),
    ]
    first, second = _seconds_by_run(events)
    assert first == pytest.approx({"trunk": 10e-6, "proposals": 30e-6, "other": 7e-6})
    assert second == pytest.approx({"trunk": 20e-6})


def test_random_detections_survive_unmolding() -> None:
    molded: Molded = mold(random_photo(300, 400), SPEC)
    rows, masks = random_detections(molded, SPEC, 40)
    found = unmold(rows, masks, molded, SPEC)
    assert len(found) == 40
    assert (found.rois[:, 2:] <= [300, 400]).all() and (found.rois[:, :2] >= 0).all()
    assert min(crop.any() for crop in found.crops)
    assert len(random_detections(molded, SPEC, 0)[0]) == 0


def test_what_is_around_the_network_is_measured() -> None:
    assert encode(random_photo(30, 40))[:2] == b"\xff\xd8"
    found = around_the_network(SPEC, (60, 80), instances=3, repeats=1)
    assert set(found) == {"decode", "mold", "unmold"} and min(found.values()) > 0


def test_a_fresh_process(fake_onnx: object, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(encode(random_photo(30, 40)))
    found = measure_cold(fake_onnx(), photo, "onnxruntime")  # type: ignore[operator]
    assert 0 < found["load_s"] <= found["first_result_s"]
    assert 10 < found["peak_memory_mib"] < 4000
    with pytest.raises(BluError, match=r"no model file .*none\.onnx"):
        measure_cold(tmp_path / "none.onnx", photo, "onnxruntime")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_of_this_process() -> None:
    before = peak_memory_mib()
    block = np.ones(64 * 2**20, np.uint8)
    assert peak_memory_mib() >= before
    assert block.any()
