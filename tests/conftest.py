"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Before TensorFlow is imported anywhere: no noise about GPUs on every test's stderr.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("BLU_CACHE", "off")  # tests leave nothing in the user's cache
if "PYTEST_XDIST_WORKER" in os.environ:
    # Each of several processes is one thread: threads that wait for each other actively, on cores that all of them
    # share, cost more than the tests.
    for name in ("BLU_CORES", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")

import numpy as np
import pytest
from hypothesis import settings
from made import cache_folder, once
from numpy.typing import NDArray

import blu_export  # noqa: F401  # before any runtime: it switches their telemetry off

pytest_plugins = ["engine_fixtures", "graph_fixtures", "pair_fixtures"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

settings.register_profile("ci", max_examples=40, deadline=None, derandomize=True)
settings.register_profile("dev", max_examples=40, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden results and photos beside the checkout; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the golden results in {SHARED.name}/ beside the checkout")
    return SHARED


@pytest.fixture(scope="session")
def golden_weights(shared: Path) -> Callable[[str], Path]:
    """``golden_weights(cfg)``: the path of that configuration's .h5, built once per user and generator version."""

    def weights(cfg: str) -> Path:
        golden = shared / "golden"
        generator = golden / "make_weights.py"
        newest = max(
            int(path.stat().st_mtime)
            for path in (generator, golden / f"manifest_{cfg}.json", golden / f"calib_{cfg}.npz")
        )

        def make(path: Path) -> None:
            subprocess.run([sys.executable, generator, cfg, path], check=True, stdout=subprocess.DEVNULL)

        return once(cache_folder() / f"{cfg}-{newest}.h5", make)

    return weights


@pytest.fixture
def eager() -> Iterator[None]:
    """TensorFlow computes at once: to trace a training step takes as long as ten of them. Other tests run the graph."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


HEAVY_FIRST = ("golden", "train", "quantize", "export", "model", "graph", "parity", "runtime", "cli", "examples")
"""Folders of long tests. They come first, and short ones last, so that all processes end at about the same time."""
MEMORY_OF_A_PROCESS = 4 * 2**30
PATIENCE_WITH_LONG_TESTS = 1800
"""Seconds: a full-size model on one thread of a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, with more patience; tests of one file stay together, for its fixtures."""
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(PATIENCE_WITH_LONG_TESTS))
    rank = {name: place for place, name in enumerate(HEAVY_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(ROOT / "tests").parts[0], len(rank)))


_loaded: set[str] = set()


def pytest_collection_finish() -> None:
    """Note what the test files import."""
    _loaded.update(sys.modules)


@pytest.fixture
def loaded_at_collection() -> set[str]:
    """Names of the modules that were loaded when this process had collected its tests."""
    return _loaded


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process per core and one more, where memory allows it: tests of servers and of Ray mostly wait."""
    from blu_export.runtime.cpu import usable_cores

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(usable_cores() + 1, memory // MEMORY_OF_A_PROCESS))


GoldenCase = dict[str, NDArray[np.generic]]


@pytest.fixture(scope="session")
def golden_case(shared: Path) -> Callable[[str, str], GoldenCase]:
    """``golden_case(cfg, image)``: what the original returned, as a dict of arrays.

    The keys of the .npz (see shared/README.md), plus ``image``: the input pixels, uint8 [H,W,3] RGB, and
    ``masks``: bool [H,W,N], decoded from ``masks_rle``. ``cfg`` may be ``edge_cases``.
    """

    def case(cfg: str, image: str) -> GoldenCase:
        import json

        from PIL import Image
        from pycocotools import mask as coco_mask

        golden = shared / "golden"
        with np.load(golden / "expected" / cfg / f"{image}.npz") as file:
            arrays: GoldenCase = dict(file)
        photo = golden / "images" / f"{image}.png"
        if photo.exists():
            with Image.open(photo) as opened:
                arrays["image"] = np.asarray(opened.convert("RGB"))
        if "masks_rle" in arrays:
            rles = json.loads(str(arrays["masks_rle"]))
            height, width = arrays["image"].shape[:2] if "image" in arrays else (0, 0)
            arrays["masks"] = coco_mask.decode(rles).astype(bool) if rles else np.zeros((height, width, 0), dtype=bool)
        return arrays

    return case


@pytest.fixture(scope="session")
def fake_onnx(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``fake_onnx(**spec fields)``: an .onnx file with a Mask R-CNN's inputs and outputs, but hardly any arithmetic.

    Every canvas has two detections: a coat that covers the whole photo, whose score is the mean of the canvas over
    255, and a shoe on the canvas's upper left quarter with half that score. Masks are full. Other keywords:
    ``metadata`` replaces or adds metadata_props (None removes one), ``rename`` renames an output.
    """

    def make(
        metadata: dict[str, str | None] | None = None, rename: dict[str, str] | None = None, **fields: object
    ) -> Path:
        import onnx
        from onnx import TensorProto, helper, numpy_helper

        from blu_export.spec import ModelSpec

        spec = ModelSpec(class_names=("BG", "coat", "shoe"), image_min_dim=64, image_max_dim=64).replace(
            detection_max_instances=3, **fields
        )
        rows = np.zeros((1, 3, 6), np.float32)
        rows[0, 0, 4] = 1
        rows[0, 1, :5] = 0, 0, 0.5, 0.5, 2
        share = np.zeros((1, 3, 6), np.float32)
        share[0, :2, 5] = 1 / 255, 0.5 / 255
        masks = np.zeros((1, 3, 28, 28), np.float32)
        masks[0, :2] = 1
        constants = {
            "rows": rows,
            "share": share,
            "full": masks,
            "sides": np.array([1, 2, 1, 2], np.int64),
            "far_edges": np.array([0, 0, 1, 1], np.float32),
            "box_row": np.array([-1, 1, 4], np.int64),
            "padding": np.array([0, 0, 0, 0, 2, 2], np.int64),
            "per_row": np.array([-1, 1, 1], np.int64),
            "per_mask": np.array([-1, 1, 1, 1], np.int64),
            "zero": np.zeros(1, np.float32),
            "one": np.ones(1, np.float32),
            "two": np.full(1, 2, np.float32),
        }
        names = {name: (rename or {}).get(name, name) for name in ("detections", "masks", "num_detections")}
        nodes = [
            helper.make_node("Cast", ["canvas"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["pixels"], ["mean"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Reshape", ["mean", "per_row"], ["mean_rows"]),
            helper.make_node("Mul", ["mean_rows", "share"], ["scores"]),
            helper.make_node("Add", ["rows", "scores"], ["scored"]),
            # The window in normalized coordinates, as in the original's norm_boxes.
            helper.make_node("Shape", ["canvas"], ["shape"]),
            helper.make_node("Gather", ["shape", "sides"], ["size"]),
            helper.make_node("Cast", ["size"], ["lengths"], to=TensorProto.FLOAT),
            helper.make_node("Sub", ["lengths", "one"], ["lengths_1"]),
            helper.make_node("Sub", ["window", "far_edges"], ["edges"]),
            helper.make_node("Div", ["edges", "lengths_1"], ["box"]),
            helper.make_node("Reshape", ["box", "box_row"], ["first_row"]),
            helper.make_node("Pad", ["first_row", "padding"], ["photo_boxes"]),
            helper.make_node("Add", ["scored", "photo_boxes"], [names["detections"]]),
            helper.make_node("Mul", ["mean", "zero"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], ["ones"]),
            helper.make_node("Reshape", ["ones", "per_mask"], ["ones_masks"]),
            helper.make_node("Mul", ["ones_masks", "full"], [names["masks"]]),
            helper.make_node("Add", ["zeros", "two"], ["twos"]),
            helper.make_node("Cast", ["twos"], [names["num_detections"]], to=TensorProto.INT32),
        ]
        height, width = spec.canvas or ("height", "width")
        info = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "fake",
            [
                info("canvas", TensorProto.UINT8, ["batch", height, width, spec.image_channel_count]),
                info("window", TensorProto.FLOAT, ["batch", 4]),
            ],
            [
                info(names["detections"], TensorProto.FLOAT, ["batch", 3, 6]),
                info(names["masks"], TensorProto.FLOAT, ["batch", 3, 28, 28]),
                info(names["num_detections"], TensorProto.INT32, ["batch"]),
            ],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        properties = {
            "blu_spec": spec.to_json(),
            "blu_target": "portable",
            "blu_precision": "float32",
            "blu_parity": '{"matched": 1.0}',
        } | (metadata or {})
        helper.set_model_props(model, {key: value for key, value in properties.items() if value is not None})
        path = tmp_path_factory.mktemp("fake") / "fake.onnx"
        onnx.save(model, path)
        return path

    return make
