"""``blu export triton``: repositories that follow Triton's schema, and whose photos end as blu infer's do."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blu_export.contract import PHOTO_OUTPUTS
from blu_export.detector import load
from blu_export.embedded import DEFAULT_MODEL, DEMO_PHOTO, embedded
from blu_export.errors import ModelFileError, UsageError
from blu_export.export.triton import HELD_MODULES, TritonSettings, export_triton, protobuf_text
from blu_export.spec import ModelSpec
from blu_export.tensorrt.sidecar import Batch, Canvases, Sidecar

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc] for Triton's schema")
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as schema

FakeOnnx = Callable[..., Path]
ROOT = Path(__file__).parents[2]
HERE = ROOT / "tests" / "support"
SERVER = "BLU_TRITONSERVER"
"""Variable: the folder of a Triton server (bin/tritonserver, backends/python). docs/triton.md says how to get one."""
SERVER_PYTHON = "BLU_TRITONSERVER_PYTHON"
"""Variable: the Python of an environment with what the repository and ONNX Runtime need."""
PATIENCE = 60


def read_config(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), schema.ModelConfig())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two photos with detections, a black one, whose detections have the score 0, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (50, 80, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(random.integers(0, 256, (301, 200), np.uint8)).save(folder / "b.jpg")
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(folder / "c.png")
    (folder / "d.png").write_bytes(b"no photo")
    return sorted(folder.iterdir())


def harness(repository: Path, name: str, photos: list[Path], folder: Path) -> dict[str, np.ndarray]:
    """What the Python model gives in a process that has nothing else of blu."""
    out = folder / "out.npz"
    command = [sys.executable, HERE / "triton_harness.py", repository, name, out, *photos]
    subprocess.run(list(map(str, command)), check=True)
    with np.load(out) as found:
        return dict(found)


def check_against_detector(model: Path, photos: list[Path], found: dict[str, np.ndarray]) -> None:
    detector = load(model, runtime="onnxruntime")
    for index, photo in enumerate(photos):
        expected = detector(photo)
        np.testing.assert_array_equal(found[f"{index}.rois"], expected.rois)
        np.testing.assert_array_equal(found[f"{index}.class_ids"], expected.class_ids)
        np.testing.assert_allclose(found[f"{index}.scores"], expected.scores, atol=1e-6)
        np.testing.assert_array_equal(found[f"{index}.masks"], expected.masks)
        assert [json.loads(text) for text in found[f"{index}.masks_rle"]] == expected.rles()


def test_the_network_is_declared_as_its_graph_has_it(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    model = fake_onnx()
    settings = TritonSettings("coats", max_batch=4, batch_delay=0.002, instances=2, frontends=3, kind="cpu")
    front, folder = export_triton(model, tmp_path / "repository", settings)
    assert (front.name, folder.name) == ("coats", "coats_network")
    assert sorted(each.name for each in (tmp_path / "repository").iterdir()) == ["coats", "coats_network"]

    config = read_config(folder)
    assert (config.name, config.backend, config.max_batch_size) == ("coats_network", "onnxruntime", 4)
    assert {(each.name, each.data_type, tuple(each.dims)) for each in config.input} == {
        ("canvas", schema.TYPE_UINT8, (64, 64, 3)),
        ("window", schema.TYPE_FP32, (4,)),
    }
    outputs = {each.name: each for each in config.output}
    assert {(name, each.data_type, tuple(each.dims)) for name, each in outputs.items()} == {
        ("detections", schema.TYPE_FP32, (3, 6)),
        ("masks", schema.TYPE_FP32, (3, 28, 28)),
        ("num_detections", schema.TYPE_INT32, (1,)),
    }
    assert outputs["num_detections"].HasField("reshape") and not outputs["num_detections"].reshape.shape
    assert [(group.count, group.kind) for group in config.instance_group] == [(2, schema.ModelInstanceGroup.KIND_CPU)]
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [warmup.batch_size for warmup in config.model_warmup] == [1, 4]
    for warmup in config.model_warmup:
        assert set(warmup.inputs) == {"canvas", "window"}
        window = np.fromfile(folder / "warmup" / warmup.inputs["window"].input_data_file, "<f4")
        assert window.tolist() == [0, 0, 64, 64]
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert (folder / "labels.txt").read_text() == "BG\ncoat\nshoe\n"

    config = read_config(front)
    assert (config.name, config.backend, config.max_batch_size) == ("coats", "python", 0)
    kinds = {
        schema.TYPE_INT32: "INT32",
        schema.TYPE_FP32: "FP32",
        schema.TYPE_BOOL: "BOOL",
        schema.TYPE_STRING: "BYTES",
    }
    assert {each.name: (kinds[each.data_type], list(each.dims)) for each in config.output} == PHOTO_OUTPUTS
    assert [(group.count, group.kind) for group in config.instance_group] == [(3, schema.ModelInstanceGroup.KIND_CPU)]
    assert ModelSpec.from_json(config.parameters["spec"].string_value).class_names == ("BG", "coat", "shoe")


def test_canvases_that_follow_the_photo_have_free_sides(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    _, folder = export_triton(fake_onnx(image_resize_mode="pad64"), tmp_path)
    assert [tuple(each.dims) for each in read_config(folder).input] == [(-1, -1, 3), (4,)]


@pytest.mark.parametrize("mode", ["square", "fit", "pad64"])
def test_photos_end_as_blu_infers_do(fake_onnx: FakeOnnx, tmp_path: Path, photos: list[Path], mode: str) -> None:
    model = fake_onnx(image_resize_mode=mode)
    front, _ = export_triton(model, tmp_path / "repository", TritonSettings("coats"))
    found = harness(front.parent, "coats", photos, tmp_path)
    check_against_detector(model, photos[:-1], found)
    text, code = found["3.error"]
    assert "is not an image that can be read" in text and code == "2"


def test_the_embedded_model_ends_as_blu_infers_does(tmp_path: Path) -> None:
    try:
        model, photo = embedded(DEFAULT_MODEL), embedded(DEMO_PHOTO)
    except ModelFileError as error:
        pytest.skip(str(error))
    export_triton(model, tmp_path / "repository")
    check_against_detector(model, [photo], harness(tmp_path / "repository", model.stem, [photo], tmp_path))


def test_the_repository_holds_exactly_the_modules_that_its_model_imports(tmp_path: Path, fake_onnx: FakeOnnx) -> None:
    front, _ = export_triton(fake_onnx(), tmp_path)
    package = front / "1" / "blu_export"
    held = sorted(".".join(path.relative_to(package).with_suffix("").parts) for path in package.rglob("*.py"))
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import model\n"
        "print(*('.'.join([name, '__init__'][: 1 + hasattr(module, '__path__')]).partition('.')[2] "
        "for name, module in sys.modules.items() if name.startswith('blu_export')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program, str(front / "1")],
        env={**os.environ, "PYTHONPATH": str(HERE)},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout.split()
    assert sorted(loaded) == held == sorted(HELD_MODULES)


def test_nothing_is_overwritten_and_other_models_stay(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    model = fake_onnx()
    export_triton(model, tmp_path, TritonSettings("one"))
    export_triton(model, tmp_path, TritonSettings("two"))
    marker = tmp_path / "one" / "1" / "marker"
    marker.touch()
    for name in ("one", "two"):
        with pytest.raises(UsageError, match=f"{name} is there already"):
            export_triton(model, tmp_path, TritonSettings(name))
    assert marker.exists()
    (tmp_path / "three_network").mkdir()
    with pytest.raises(UsageError, match="three_network is there already"):
        export_triton(model, tmp_path, TritonSettings("three"))
    assert not (tmp_path / "three").exists()


def test_a_failure_leaves_nothing(fake_onnx: FakeOnnx, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    model = fake_onnx()
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        export_triton(model, tmp_path)
    assert not list(tmp_path.iterdir())


def write_engine(folder: Path, builder: str = "tensorrt", sizes: tuple[int, int, int] = (1, 4, 16)) -> Path:
    engine = folder / "coats.engine"
    engine.write_bytes(b"an engine")
    spec = ModelSpec(class_names=("BG", "coat"), image_min_dim=512, image_max_dim=512)
    Sidecar(
        engine_sha256=hashlib.sha256(b"an engine").hexdigest(),
        onnx_sha256="",
        spec=spec,
        canvases=Canvases.of(spec),
        builder=builder,
        builder_version="10.16",
        target="t4",
        capability=(7, 5),
        precision="fp16",
        batch=Batch(*sizes),
        rebuild="blu build-engine coats.onnx",
    ).write(engine)
    return engine


def test_engines_become_plans(tmp_path: Path) -> None:
    engine = write_engine(tmp_path)
    front, folder = export_triton(engine, tmp_path / "repository")
    config = read_config(folder)
    assert (config.backend, config.max_batch_size) == ("tensorrt", 16)
    assert [group.kind for group in config.instance_group] == [schema.ModelInstanceGroup.KIND_GPU]
    assert {each.name: tuple(each.dims) for each in config.output} == {
        "detections": (100, 6),
        "masks": (100, 28, 28),
        "num_detections": (1,),
    }
    assert (folder / "1" / "model.plan").read_bytes() == b"an engine"
    assert front.name == "coats"


def test_engines_that_triton_cannot_run_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="tensorrt-rtx, which Triton has no backend for"):
        export_triton(write_engine(tmp_path, builder="tensorrt-rtx"), tmp_path / "repository")
    with pytest.raises(UsageError, match="batches of 4 to 4"):
        export_triton(write_engine(tmp_path, sizes=(4, 4, 4)), tmp_path / "repository")
    with pytest.raises(UsageError, match="at most 16, not 32"):
        export_triton(write_engine(tmp_path), tmp_path / "repository", TritonSettings(max_batch=32))
    write_engine(tmp_path).write_bytes(b"another engine")
    with pytest.raises(ModelFileError, match="is not the engine that"):
        export_triton(tmp_path / "coats.engine", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize("name", ["a/b", "", "..", "a b"])
def test_names_that_are_no_folder_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a model name"):
        TritonSettings(name)


def test_text_of_any_kind_survives() -> None:
    text = 'quote " backslash \\ newline \n tab \t é 漢 😀'
    message = schema.ModelConfig()
    text_format.Parse(
        "\n".join(protobuf_text({"name": text, "version_policy": {"specific": {"versions": [1, 3]}}})), message
    )
    assert message.name == text
    assert list(message.version_policy.specific.versions) == [1, 3]


def test_the_command(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "blu_export", "export", "triton", fake_onnx(), "-o", tmp_path / "repository"]
    first = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert (first.returncode, first.stdout.split()) == (
        0,
        [str(tmp_path / "repository" / n) for n in ("fake", "fake_network")],
    )
    assert "model.onnx (" in first.stderr and "tritonserver --model-repository" in first.stderr
    second = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert second.returncode == 2 and "is there already" in second.stderr


# A real server, where there is one. It has no backend for ONNX files, so that a Python model stands in for it:
# everything else of the repository is as exported.

STAND_IN = """
import numpy as np, onnxruntime, os, triton_python_backend_utils as pb
class TritonPythonModel:
    def initialize(self, args):
        path = os.path.join(args["model_repository"], args["model_version"], "model.onnx")
        self.session = onnxruntime.InferenceSession(path)
    def execute(self, requests):
        both = [[pb.get_input_tensor_by_name(r, n).as_numpy() for n in ("canvas", "window")] for r in requests]
        names = ["detections", "masks", "num_detections"]
        canvas, window = (np.concatenate(parts) for parts in zip(*both))
        detections, masks, count = self.session.run(names, {"canvas": canvas, "window": window})
        answers = []
        for index, request in enumerate(requests):
            rows = slice(index, index + 1)
            found = dict(zip(names, (detections[rows], masks[rows], count[rows, None])))
            wanted = request.requested_output_names()
            answers.append(pb.InferenceResponse([pb.Tensor(n, a) for n, a in found.items() if n in wanted]))
        return answers
"""


@pytest.fixture(scope="module")
def triton(fake_onnx: FakeOnnx, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, int]]:
    """(model, HTTP port, gRPC port) of a Triton server with the repository ``coats``."""
    if SERVER not in os.environ:
        pytest.skip(f"needs a Triton server, named by {SERVER}; see docs/triton.md")
    server, model = Path(os.environ[SERVER]), fake_onnx()
    repository = tmp_path_factory.mktemp("triton") / "repository"
    _, network = export_triton(model, repository, TritonSettings("coats", max_batch=2, frontends=2, kind="cpu"))
    config = (network / "config.pbtxt").read_text()
    (network / "config.pbtxt").write_text(config.replace('"onnxruntime"', '"python"'))
    (network / "1" / "model.py").write_text(STAND_IN)
    ports = free_ports(2)
    python = Path(os.environ.get(SERVER_PYTHON, sys.executable))
    packages = subprocess.check_output([python, "-c", "import numpy; print(numpy.__path__[0])"], text=True)
    environment = {"PATH": f"{python.parent}:{os.environ['PATH']}", "PYTHONPATH": str(Path(packages.strip()).parent)}
    log = repository.parent / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                server / "bin" / "tritonserver",
                f"--model-repository={repository}",
                f"--backend-directory={server / 'backends'}",
                f"--http-port={ports[0]}",
                f"--grpc-port={ports[1]}",
                "--http-address=127.0.0.1",
                "--grpc-address=127.0.0.1",
                "--allow-metrics=false",
                "--exit-timeout-secs=1",
            ],
            stdout=file,
            stderr=file,
            env=environment,
        )
    try:
        wait_until_ready(process, ports[0], log)
        yield model, ports[0], ports[1]
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import tritonclient.http

    until = time.monotonic() + PATIENCE
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{port}") as client:
        while time.monotonic() < until:
            assert process.poll() is None, log.read_text()
            try:
                if client.is_server_ready():
                    return
            except OSError:
                pass
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_real_server_gives_what_blu_infer_gives(
    triton: tuple[Path, int, int], photos: list[Path], protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from tritonclient.utils import InferenceServerException

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import triton_client as example

    model, *ports = triton
    module = importlib.import_module(f"tritonclient.{protocol}")
    detector = load(model, runtime="onnxruntime")
    with module.InferenceServerClient(f"127.0.0.1:{ports[protocol == 'grpc']}") as client:
        for photo in photos[:-1]:
            found, expected = example.detect(client, module, "coats", photo.read_bytes()), detector(photo)
            np.testing.assert_array_equal(found["rois"], expected.rois)
            np.testing.assert_array_equal(found["class_ids"], expected.class_ids)
            np.testing.assert_allclose(found["scores"], expected.scores, atol=1e-6)
            assert found["masks_rle"] == expected.rles()
        with pytest.raises(InferenceServerException, match="is not an image that can be read"):
            example.detect(client, module, "coats", b"no photo")
        image = module.InferInput("image", [1], "BYTES")
        image.set_data_from_numpy(np.array([photos[0].read_bytes()], np.object_))
        everything = client.infer("coats", [image])
        np.testing.assert_array_equal(everything.as_numpy("masks"), detector(photos[0]).masks)
