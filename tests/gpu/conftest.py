"""A GPU to test on. Every test here skips with a reason where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from full_models import DEMO_PHOTO

from blu_export.embedded import embedded
from blu_export.errors import UsageError
from blu_export.export.engine import Request, build_engine, find_device
from blu_export.tensorrt.builder import check_target
from blu_export.tensorrt.cuda import Cuda
from blu_export.tensorrt.libraries import is_installed, load_builder
from blu_export.tensorrt.sidecar import Batch, Sidecar


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def device() -> Cuda:
    """The GPU of this machine."""
    found = find_device()
    if found is None:
        pytest.skip("needs an NVIDIA GPU, its driver, and cuda-python")
    return found


@pytest.fixture(scope="session", params=["tensorrt", "tensorrt-rtx"])
def builder(request: pytest.FixtureRequest, device: Cuda) -> str:
    """Each builder that is installed."""
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    try:
        check_target(load_builder(request.param), device.capability)
    except UsageError as error:
        pytest.skip(str(error))
    return str(request.param)


@pytest.fixture(scope="session")
def garments_onnx(device: Cuda) -> Path:
    """The embedded model: trained, small, and there without TensorFlow."""
    return embedded()


@pytest.fixture(scope="session")
def photo() -> Path:
    """The photo that ships with the project."""
    return DEMO_PHOTO


@pytest.fixture(scope="session")
def build(
    device: Cuda, builder: str, garments_onnx: Path, photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Sidecar]]:
    """``build(precision, **Request fields)``: an engine for this GPU, made once for each precision."""
    folder, made = tmp_path_factory.mktemp("engines"), {}

    def make(precision: str = "fp16", **changes: Any) -> tuple[Path, Sidecar]:
        key = (precision, *changes)
        if key not in made:
            output = folder / f"{len(made)}.engine"
            values = {"batch": Batch(1, 2, 4), "output": output, "builder": builder, "target": "this-gpu"} | changes
            made[key] = build_engine(Request(garments_onnx, precision, **values), [photo], device, print)
        return made[key]

    return make
