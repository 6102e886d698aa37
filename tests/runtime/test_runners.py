"""ONNX Runtime and OpenVINO on a model whose answer is known by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from blu_export.errors import BluError, MissingDependencyError, ModelFileError, UsageError
from blu_export.image import decode, mold
from blu_export.parity.verify import TOLERANCES, ParityReport, verify
from blu_export.runtime import Runner, RunnerOptions, load_runner
from blu_export.runtime.frequent import MOST_SIZES
from blu_export.runtime.openvino import OpenVinoRunner, _knows_same_bits, has_bf16

FakeOnnx = Callable[..., Path]
BOTH = pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])


def _canvas(*levels: int) -> NDArray[np.uint8]:
    return np.stack([np.full((64, 64, 3), level, np.uint8) for level in levels])


def _window(count: int) -> NDArray[np.float32]:
    return np.tile(np.array([0, 0, 64, 64], np.float32), (count, 1))


def _check(runner: Runner, *levels: int) -> None:
    detections, masks = runner.run(_canvas(*levels), _window(len(levels)))
    assert detections.dtype == masks.dtype == np.float32
    assert detections.shape == (len(levels), 3, 6)
    assert masks.shape == (len(levels), 3, 28, 28)
    np.testing.assert_allclose(detections[:, 0, 5], np.array(levels) / 255, atol=1e-6)
    np.testing.assert_array_equal(detections[:, :, 4], [[1, 2, 0]] * len(levels))
    np.testing.assert_array_equal(masks[:, :, 14, 14], [[1, 1, 0]] * len(levels))


@BOTH
def test_batches_of_any_size(fake_onnx: FakeOnnx, runtime: str) -> None:
    with load_runner(fake_onnx(), RunnerOptions(runtime)) as runner:
        assert (runner.runtime, runner.device, runner.precision) == (runtime, "CPU", "float32")
        for levels in ((255,), (0, 51, 102), (51,), (10, 20, 30, 40, 50)):
            _check(runner, *levels)


@BOTH
def test_threads_do_not_mix_their_answers(fake_onnx: FakeOnnx, runtime: str) -> None:
    with load_runner(fake_onnx(), RunnerOptions(runtime, threads=1)) as runner, ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(_check, runner, level, 255 - level) for level in range(0, 250, 5)]:
            future.result()


def test_models_that_share_an_arena_do_not_mix_their_answers(fake_onnx: FakeOnnx) -> None:
    path = fake_onnx()
    several = RunnerOptions("onnxruntime", threads=2, throughput=True, shared_arena=True)
    with load_runner(path, replace(several, throughput=False)) as alone, ThreadPoolExecutor(4) as pool:
        entry = "session.use_env_allocators"
        assert alone._session.get_session_options().get_session_config_entry(entry) == "1"  # type: ignore[attr-defined]
        with load_runner(path, several) as each:
            levels = range(0, 250, 10)
            for future in [pool.submit(_check, runner, level) for level in levels for runner in (alone, each)]:
                future.result()
        _check(alone, 51)  # after the other one is closed


@BOTH
def test_answers_are_not_overwritten_by_the_next_call(fake_onnx: FakeOnnx, runtime: str) -> None:
    with load_runner(fake_onnx(), RunnerOptions(runtime)) as runner:
        first, _ = runner.run(_canvas(51), _window(1))
        runner.run(_canvas(204), _window(1))
        assert first[0, 0, 5] == pytest.approx(0.2, abs=1e-6)


@BOTH
def test_a_wrong_canvas_is_an_error_not_a_crash(fake_onnx: FakeOnnx, runtime: str) -> None:
    with load_runner(fake_onnx(), RunnerOptions(runtime)) as runner, pytest.raises(BluError, match="32x64"):
        runner.run(np.zeros((1, 32, 64, 3), np.uint8), _window(1))


def _trunk_in_the_middle(path: Path) -> bytes:
    """The fake model with its first result named as the trunk's: something to split after."""
    import onnx

    model = onnx.load(path)
    first = model.graph.node[0].output[0]
    for node in model.graph.node:
        node.input[:] = ["trunk/P2" if name == first else name for name in node.input]
        node.output[:] = ["trunk/P2" if name == first else name for name in node.output]
    return model.SerializeToString()


def test_bf16_without_its_units_is_an_error_not_a_fallback(
    fake_onnx: FakeOnnx, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blu_export.runtime.openvino.has_bf16", lambda: False)
    with pytest.raises(MissingDependencyError, match="no bf16 units"):
        load_runner(fake_onnx(), RunnerOptions(precision="bf16"))
    with pytest.raises(UsageError, match="onnxruntime does not compute in bf16"):
        load_runner(fake_onnx(), RunnerOptions("onnxruntime", "bf16"))
    with pytest.raises(UsageError, match="is int8 and cannot run in bf16"):
        OpenVinoRunner(fake_onnx(metadata={"blu_precision": "int8"}), bf16=True)


def test_bf16_splits_the_graph_after_the_trunk(fake_onnx: FakeOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the processor has bf16 units the trunk is rounded by them; where it has none, nothing is."""
    exact = not has_bf16()
    monkeypatch.setattr("blu_export.runtime.openvino.has_bf16", lambda: True)
    path = fake_onnx()
    path.write_bytes(_trunk_in_the_middle(path))
    with load_runner(path, RunnerOptions(precision="bf16")) as runner:
        assert (runner.runtime, runner.precision) == ("openvino", "bf16")
        assert isinstance(runner, OpenVinoRunner)
        trunk, rest = runner._network.parts
        assert [output.any_name for output in trunk.outputs] == ["trunk/P2"]
        assert "trunk/P2" in {i.any_name for i in rest.inputs}
        for levels in ((255,), (0, 51, 102)):
            detections, masks = runner.run(_canvas(*levels), _window(len(levels)))
            np.testing.assert_allclose(detections[:, 0, 5], np.array(levels) / 255, atol=1e-6 if exact else 0.01)
            np.testing.assert_array_equal(masks[:, :, 14, 14], [[1, 1, 0]] * len(levels))


def _bf16_beside_float32(photos: Sequence[Path]) -> ParityReport:
    from blu_export.embedded import embedded

    with OpenVinoRunner(embedded()) as reference, pytest.MonkeyPatch.context() as patch:
        patch.setattr("blu_export.runtime.openvino.has_bf16", lambda: True)
        with OpenVinoRunner(embedded(), bf16=True) as candidate:
            return verify(reference, candidate, photos, TOLERANCES["bf16"])


@pytest.mark.parametrize("bf16", [False, True])
def test_sizes_that_come_often_are_compiled_and_give_the_same_bits(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.embedded import DEMO_PHOTO, embedded

    monkeypatch.setattr("blu_export.runtime.frequent.FREQUENT", 3)
    monkeypatch.setattr("blu_export.runtime.openvino.has_bf16", lambda: True)
    with OpenVinoRunner(embedded(), bf16=bf16) as runner:
        photo = decode(embedded(DEMO_PHOTO))
        for cropped in (photo, photo[: len(photo) * 2 // 3]):
            molded = mold(cropped, runner.spec)
            found = [runner.run(molded.canvas[None], molded.window[None]) for _ in range(4)]
            assert (found[0][0][..., 5] > 0).any()
            for detections, masks in found[1:]:
                np.testing.assert_array_equal(detections, found[0][0])
                np.testing.assert_array_equal(masks, found[0][1])
        assert runner._frequent is not None
        assert len(runner._frequent) == 2


def test_sizes_that_come_often_do_not_mix_their_answers(fake_onnx: FakeOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blu_export.runtime.frequent.FREQUENT", 3)
    path = fake_onnx(image_resize_mode="fit", image_max_dim=256, image_channel_count=4, mean_pixel=(0.0,) * 4)
    with load_runner(path, RunnerOptions("openvino", threads=1)) as runner, ThreadPoolExecutor(4) as pool:

        def check(height: int, width: int, *levels: int) -> None:
            canvas = np.stack([np.full((height, width, 4), level, np.uint8) for level in levels])
            window = np.tile(np.array([0, 0, height, width], np.float32), (len(levels), 1))
            detections, _ = runner.run(canvas, window)
            np.testing.assert_allclose(detections[:, 0, 5], np.array(levels) / 255, atol=1e-6)
            np.testing.assert_allclose(detections[:, 0, :4], [[0, 0, 1, 1]] * len(levels), atol=1e-6)

        sizes = [(64 * h, 64 * w) for h in range(1, 5) for w in range(1, 4)]
        jobs = [pool.submit(check, *size, level) for level in range(0, 250, 25) for size in sizes]
        jobs += [pool.submit(check, *size, level, 255 - level) for level in range(0, 250, 50) for size in sizes]
        for job in jobs:
            job.result()
        assert isinstance(runner, OpenVinoRunner)
        assert runner._frequent is not None
        assert len(runner._frequent) == MOST_SIZES


def test_which_models_are_compiled_for_sizes(fake_onnx: FakeOnnx, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not int8, which would round elsewhere; not large ones, for their memory; none where the canvas is fixed."""
    fit = {"image_resize_mode": "fit", "image_max_dim": 256}
    with OpenVinoRunner(fake_onnx(**fit)) as runner:
        assert runner._frequent is not None
    with OpenVinoRunner(fake_onnx({"blu_precision": "int8"}, **fit)) as runner:
        assert runner._frequent is None
    with OpenVinoRunner(fake_onnx()) as runner:
        assert runner._frequent is None
        assert runner._network.parts[0].input("canvas").get_shape() == [1, 64, 64, 3]
    monkeypatch.setattr("blu_export.runtime.openvino.MOST_BYTES", 100)
    with OpenVinoRunner(fake_onnx(**fit)) as runner:
        assert runner._frequent is None


def test_a_setting_that_openvino_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _knows_same_bits()
    monkeypatch.setattr("blu_export.runtime.openvino.SAME_BITS", {"NO_SUCH_SETTING": "YES"})
    assert not _knows_same_bits.__wrapped__()


def test_bf16_of_a_real_model_finds_what_float32_finds_on_the_demo_photo() -> None:
    """On processors without bf16 units only the cut is proved, on the last bit."""
    from blu_export.embedded import DEMO_PHOTO, embedded

    found = _bf16_beside_float32([embedded(DEMO_PHOTO)]).to_json()
    assert found["matched"] == found["instances"] > 0
    if not has_bf16():
        assert found["max_score_error"] == 0


def test_bf16_of_a_real_model_is_within_its_bounds(shared: Path) -> None:
    """Which hold over many instances: the few of one photo are small, and a rim of a pixel weighs much on them."""
    report = _bf16_beside_float32(sorted((shared / "data" / "garments" / "images").iterdir())[:40])
    report.require()
    assert report.to_json()["instances"] >= 200


def test_auto_says_what_it_took_and_why(fake_onnx: FakeOnnx, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "blu_export")
    with load_runner(fake_onnx()) as runner:
        assert runner.runtime == "onnxruntime"
    assert "runtime onnxruntime, float32: usually the fastest for float32" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"runtime": "tflite"}, UsageError, "no runtime 'tflite'"),
        ({"runtime": "keras"}, UsageError, "keras cannot run"),
        ({"precision": "int8"}, ModelFileError, "is a float32 model, not int8"),
        ({"precision": "fp64"}, UsageError, "no precision 'fp64'"),
        ({"threads": 0}, UsageError, "0 threads"),
        ({"runtime": "onnxruntime", "device": "npu"}, UsageError, "no device 'npu'"),
        ({"runtime": "openvino", "device": "cuda"}, UsageError, "not on 'cuda'"),
    ],
)
def test_impossible_wishes(fake_onnx: FakeOnnx, arguments: dict[str, str], error: type[BluError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_runner(fake_onnx(), RunnerOptions(**arguments))  # type: ignore[arg-type]


def test_keras_files_have_a_device_too(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    (tmp_path / "model.h5").touch()
    with pytest.raises(UsageError, match="TensorFlow has no device 'npu'"):
        load_runner(tmp_path / "model.h5", RunnerOptions("keras", device="npu"))


def test_a_gpu_that_is_not_there_is_an_error_not_a_fallback(fake_onnx: FakeOnnx) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is ONNX Runtime's GPU build")
    with pytest.raises(MissingDependencyError, match="CUDAExecutionProvider"):
        load_runner(fake_onnx(), RunnerOptions(device="cuda"))


@BOTH
def test_a_graph_that_the_runtime_refuses(tmp_path: Path, fake_onnx: FakeOnnx, runtime: str) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(fake_onnx().read_bytes().replace(b"ReduceMean", b"ReduceMeen"))
    with pytest.raises(ModelFileError, match=r"refuses .*broken\.onnx"):
        load_runner(broken, RunnerOptions(runtime))


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no model file"):
        load_runner(tmp_path / "none.onnx")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelFileError, match="is not a model file"):
        load_runner(tmp_path / "notes.txt")
