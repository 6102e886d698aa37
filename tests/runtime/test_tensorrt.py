"""The runner's own work (buffers, batches, waits, threads, checks), on a GPU made of host memory."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import Error, FakeCuda, FakeTensorRt

from blu_export.cli.main import main
from blu_export.errors import BluError, MissingDependencyError, ModelFileError, UsageError
from blu_export.runtime import load_runner
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.runtime.tensorrt import TensorRtRunner
from blu_export.tensorrt.cuda import LOST, Cuda, CudaError
from blu_export.tensorrt.sidecar import Batch, Canvases, Sidecar

pytest.importorskip("onnxruntime")


class Machine:
    """A machine with a fake GPU, and an engine that was built for it."""

    def __init__(self, onnx_path: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cuda = FakeCuda()
        self.trt = FakeTensorRt(self.cuda)
        self.onnx = onnx_path
        self.path = folder / "fake.engine"
        self.path.write_bytes(onnx_path.read_bytes())
        self.reference = OnnxRuntimeRunner(onnx_path)
        self.describe()
        patch.setattr("blu_export.runtime.tensorrt.load_builder", lambda name: self.trt)
        patch.setattr("blu_export.runtime.tensorrt.Cuda", lambda device=0: Cuda(device, self.cuda))

    def describe(self, **changes: Any) -> None:
        """Write the sidecar."""
        values: dict[str, Any] = {
            "engine_sha256": hashlib.sha256(self.path.read_bytes()).hexdigest(),
            "onnx_sha256": "0" * 64,
            "spec": self.reference.spec,
            "builder": "tensorrt",
            "builder_version": self.trt.__version__,
            "target": "t4",
            "capability": (7, 5),
            "precision": "fp16",
            "batch": Batch(*self.trt.sizes),
            "canvases": Canvases(*self.trt.canvases) if self.trt.canvases else Canvases.of(self.reference.spec),
            "rebuild": "blu build-engine fake.onnx --fp16 --target t4 -o fake.engine",
        }
        Sidecar(**(values | changes)).write(self.path)

    def runner(self) -> TensorRtRunner:
        return TensorRtRunner(self.path)


@pytest.fixture
def machine(fake_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine(fake_onnx(), tmp_path, monkeypatch)
    yield made
    made.reference.close()


def photos(count: int, seed: int = 0) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    canvas = random.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)
    low, size = random.integers(0, 20, (count, 2)), random.integers(21, 44, (count, 2))
    return canvas, np.concatenate([low, low + size], axis=1).astype(np.float32)


def same(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_batches_of_any_size_give_what_the_model_gives(machine: Machine, count: int) -> None:
    canvas, window = photos(count)
    with machine.runner() as runner:
        for _ in range(3):  # first run, capture, replay
            same(runner.run(canvas, window), machine.reference.run(canvas, window))


def test_canvases_of_many_shapes(
    fake_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shape has its context and graph, of which a bounded number is kept; the profile's limits are said."""
    made = Machine(fake_onnx(image_resize_mode="fit", image_max_dim=256), tmp_path, monkeypatch)
    made.trt.canvases = ((64, 64), (192, 256), (256, 256))
    made.describe()
    monkeypatch.setattr("blu_export.tensorrt.lane.MOST_CONTEXTS", 3)
    random = np.random.default_rng(3)
    with made.reference, made.runner() as runner:
        for height, width, count in [
            (64, 128, 1),
            (64, 128, 2),
            (256, 192, 2),
            (64, 128, 1),
            (128, 64, 1),
            (64, 64, 4),
        ] * 2:
            canvas = random.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
            window = np.tile(np.array([0, 0, height, width], np.float32), (count, 1))
            same(runner.run(canvas, window), made.reference.run(canvas, window))
            assert made.cuda.graphs <= 3
        for size in ((320, 64), (32, 64)):
            with pytest.raises(UsageError, match=r"64 to 256, 64 to 256, 3\]"):
                runner.run(np.zeros((1, *size, 3), np.uint8), np.zeros((1, 4), np.float32))
    assert made.cuda.graphs == 0


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_canvases_of_other_channels(
    fake_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    path = fake_onnx(image_channel_count=channels, mean_pixel=(7.0,) * channels)
    made = Machine(path, tmp_path, monkeypatch)
    canvas = np.random.default_rng(4).integers(0, 256, (3, 64, 64, channels), np.uint8)
    window = np.tile(np.array([0, 0, 64, 64], np.float32), (3, 1))
    with made.reference, made.runner() as runner:
        for _ in range(3):  # first run, capture, replay
            same(runner.run(canvas, window), made.reference.run(canvas, window))
        with pytest.raises(UsageError, match=rf"64, 64, {channels}\] .* not uint8 \[3, 64, 64, 3\]"):
            runner.run(canvas[..., :1].repeat(3, axis=3), window)


def test_a_small_batch_is_filled_up_to_the_engines_smallest(machine: Machine) -> None:
    machine.trt.sizes = (2, 2, 4)
    machine.describe()
    canvas, window = photos(5)
    with machine.runner() as runner:
        same(runner.run(canvas, window), machine.reference.run(canvas, window))
        assert runner.run(*photos(1))[0].shape[0] == 1


def test_streams_keep_their_order_and_overlap(machine: Machine) -> None:
    batches = [photos(count, seed) for seed, count in enumerate([1, 4, 6, 2, 1, 9])]
    with machine.runner() as runner:
        for (canvas, window), found in zip(batches, runner.stream(iter(batches)), strict=True):
            same(found, machine.reference.run(canvas, window))
        assert runner._made == 2, "the second batch did not get a lane of its own"


def test_a_stream_that_is_left_gives_its_lanes_back(machine: Machine) -> None:
    with machine.runner() as runner:
        results = runner.stream(photos(1, seed) for seed in range(4))
        next(results)
        results.close()
        assert len(runner._free) == runner._made
        same(runner.run(*photos(2)), machine.reference.run(*photos(2)))


def test_later_runs_are_replayed_graphs(machine: Machine) -> None:
    with machine.runner() as runner:
        assert runner.cuda_graphs == "off"
        for _ in range(3):
            runner.run(*photos(2))
        assert (runner.cuda_graphs, machine.cuda.graphs, machine.cuda.launched) == ("on", 1, 2)
        runner.run(*photos(1))
        assert machine.cuda.graphs == 2


def test_an_engine_that_cannot_be_captured_runs_without_and_says_so(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.trt.capturable = False
    with machine.runner() as runner:
        for _ in range(3):
            same(runner.run(*photos(2)), machine.reference.run(*photos(2)))
        assert runner.cuda_graphs.startswith("not possible")
    assert machine.cuda.launched == 0
    assert len([r for r in caplog.records if "without CUDA graphs" in r.message]) == 1


def test_masks_of_empty_rows_stay_on_the_gpu(machine: Machine) -> None:
    with machine.runner() as runner:
        runner.run(*photos(1))
        machine.cuda.copied_back = 0
        runner.run(*photos(1))
    rows, mask = 3, 28 * 28 * 4
    assert machine.cuda.copied_back == 4 + rows * 6 * 4 + 2 * mask  # two detections of three rows


def test_threads_share_a_runner(machine: Machine) -> None:
    wanted = {seed: machine.reference.run(*photos(1 + seed % 5, seed)) for seed in range(24)}
    problems: list[BaseException] = []

    def work(seeds: range) -> None:
        try:
            for seed in seeds:
                same(runner.run(*photos(1 + seed % 5, seed)), wanted[seed])
        except BaseException as error:
            problems.append(error)

    with machine.runner() as runner:
        threads = [threading.Thread(target=work, args=(range(n, 24, 4),)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not problems and runner._made <= 2


def test_close_gives_everything_back(machine: Machine) -> None:
    before = machine.cuda.free
    runner = machine.runner()
    list(runner.stream(photos(4, seed) for seed in range(3)))
    runner.close()
    cuda = machine.cuda
    assert (cuda.free, cuda.host, cuda.streams, cuda.graphs) == (before, {}, {}, 0)
    with pytest.raises(BluError, match="closed"):
        runner.run(*photos(1))


def test_memory_for_one_lane_only(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    with machine.runner() as runner:
        machine.cuda.free = 10
        for seed, found in enumerate(runner.stream(photos(2, seed) for seed in range(3))):
            same(found, machine.reference.run(*photos(2, seed)))
    assert "1 lane only" in caplog.text


def test_too_little_memory(machine: Machine) -> None:
    machine.cuda.free = 10
    with pytest.raises(CudaError, match="smaller batch"):
        machine.runner()
    assert not machine.cuda.host and not machine.cuda.streams


def test_a_lost_gpu_is_said_in_words(machine: Machine) -> None:
    with machine.runner() as runner:
        machine.cuda.failing = Error.cudaErrorIllegalAddress
        with pytest.raises(CudaError, match="lost to this program") as caught:
            runner.run(*photos(1))
        assert caught.value.lost


def test_errors_after_which_cuda_wants_the_process_ended_are_losses() -> None:
    errors = pytest.importorskip("cuda.bindings.runtime").cudaError_t
    described = {error.name for error in errors if "process in an inconsistent state" in (error.__doc__ or "")}
    assert described and described <= LOST


def test_rtx_captures_for_itself(machine: Machine) -> None:
    machine.trt.__name__ = "tensorrt_rtx"
    machine.describe(builder="tensorrt-rtx")
    with machine.runner() as runner:
        for _ in range(3):
            same(runner.run(*photos(3)), machine.reference.run(*photos(3)))
        assert machine.cuda.graphs == 0 and "TensorRT-RTX" in runner.cuda_graphs


def test_load_runner_takes_engines(machine: Machine) -> None:
    with load_runner(machine.path) as runner:
        assert (runner.runtime, runner.precision, runner.device) == ("tensorrt", "fp16", "CUDA: Fake T4")
        assert runner.spec == machine.reference.spec


def blu(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_commands_take_engines(
    machine: Machine, demo_photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert blu("infer", demo_photo, "--model", machine.path, "--json") == 0
    assert "coat" in capsys.readouterr().out
    assert blu("verify", machine.onnx, machine.path, "--images", demo_photo, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and report["candidate"] == "tensorrt fp16 on CUDA: Fake T4"


def test_evaluate_takes_engines(machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "white").save(tmp_path / "photo.png")
    truth = {
        "images": [{"id": 7, "file_name": "photo.png", "height": 64, "width": 64}],
        "categories": [{"id": 1, "name": "coat"}, {"id": 2, "name": "shoe"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "area": 4096, "bbox": [0, 0, 64, 64],
             "segmentation": [[0, 0, 64, 0, 64, 64, 0, 64]]}
        ],
    }  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert blu("evaluate", machine.path, tmp_path / "truth.json", "--expect", "box_ap>=0.99", "--json") == 0
    assert json.loads(capsys.readouterr().out)["box"]["ap"] == pytest.approx(1.0)


def test_inputs_of_the_wrong_shape(machine: Machine) -> None:
    canvas, window = photos(2)
    with machine.runner() as runner:
        for bad in ((canvas[:, :32], window), (canvas, window[:1]), (canvas[:0], window[:0])):
            with pytest.raises(UsageError, match="takes canvases"):
                runner.run(*bad)


REBUILD = "blu build-engine"


def test_an_engine_that_was_changed_is_not_loaded(machine: Machine) -> None:
    machine.path.write_bytes(machine.path.read_bytes() + b"\0")
    machine.trt.Runtime = None  # type: ignore[assignment]  # nothing native may see it
    with pytest.raises(ModelFileError, match=r"is not loaded.*blu build-engine"):
        machine.runner()


def test_an_engine_without_a_sidecar_is_not_loaded(machine: Machine) -> None:
    machine.path.with_name("fake.engine.json").unlink()
    with pytest.raises(ModelFileError, match="no sidecar"):
        machine.runner()


def test_another_version_of_the_builder(machine: Machine) -> None:
    machine.trt.__version__ = "10.16.1"
    with pytest.raises(ModelFileError, match=r"built by tensorrt 11.4.0, and 10.16.1 is installed.*blu build-engine"):
        machine.runner()


def test_another_card(machine: Machine) -> None:
    machine.cuda.capability = (8, 6)
    with pytest.raises(ModelFileError, match=r"for t4 \(sm75\), and this GPU is Fake T4 \(sm86\).*--target sm86"):
        machine.runner()


def test_other_shapes_than_the_sidecar_says(machine: Machine) -> None:
    machine.describe(batch=Batch(1, 1, 16))
    with pytest.raises(ModelFileError, match="other batch sizes or canvases than its sidecar says"):
        machine.runner()
    machine.describe(spec=machine.reference.spec.replace(detection_max_instances=7))
    with pytest.raises(ModelFileError, match="other detections, masks than"):
        machine.runner()


def test_a_refused_engine_carries_the_builders_words(machine: Machine) -> None:
    machine.trt.refusing = True
    with pytest.raises(ModelFileError, match=r"serialization version mismatch.*blu build-engine"):
        machine.runner()


@pytest.mark.parametrize(
    ("cuda", "message"),
    [(FakeCuda(devices=0), "cudaErrorNoDevice"), (FakeCuda(driver=0), "no NVIDIA driver"), (FakeCuda(), "GPU 3")],
)
def test_no_gpu(cuda: FakeCuda, message: str) -> None:
    with pytest.raises(MissingDependencyError, match=message):
        Cuda(3 if message == "GPU 3" else 0, cuda)


def test_devices(machine: Machine) -> None:
    with pytest.raises(UsageError, match="cannot run on 'cpu'"):
        TensorRtRunner(machine.path, "cpu")
    with pytest.raises(MissingDependencyError, match="no GPU 1"):
        TensorRtRunner(machine.path, "cuda:1")
