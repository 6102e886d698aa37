"""ONNX Runtime's CUDA provider on a real GPU: the files as they are, in float32 and in half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from blu_export.detector import load
from blu_export.export.checked import checked_graph
from blu_export.graph.split import split
from blu_export.parity.verify import verify
from blu_export.quantize.precision import apply_precision, canvases
from blu_export.runtime.onnx_file import OnnxFile, parse_onnx, read_onnx, spec_of
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner
from blu_export.tensorrt.cuda import Cuda


@pytest.fixture(scope="module", autouse=True)
def provider(device: Cuda) -> None:
    """The GPU build of ONNX Runtime."""
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build of ONNX Runtime has no CUDA")


@pytest.fixture(scope="module", params=["float32", "fp16"])
def file(request: pytest.FixtureRequest, garments_onnx: Path, photo: Path) -> OnnxFile:
    """The embedded model in a precision, portable."""
    source = read_onnx(garments_onnx)
    if request.param == "float32":
        return source
    spec = spec_of(source, "garments")
    typed = apply_precision(
        split(onnx.load_from_string(source.data), spec), spec, request.param, "portable", canvases([photo], spec)
    )
    return parse_onnx(checked_graph(typed, spec).SerializeToString(), "garments")


def test_it_finds_what_the_processor_finds(file: OnnxFile, garments_onnx: Path, photo: Path) -> None:
    with OnnxRuntimeRunner(garments_onnx, "cpu") as reference, OnnxRuntimeRunner(file, "cuda") as candidate:
        assert candidate.device == "CUDA: GPU 0"
        verify(reference, candidate, [photo]).require()


def test_a_detector_takes_the_gpu_by_itself(garments_onnx: Path, photo: Path) -> None:
    chosen, processor = load(garments_onnx, runtime="onnxruntime"), load(garments_onnx, device="cpu")
    assert "CUDA" in chosen.runner.device
    found, wanted = chosen(photo), processor(photo)
    assert (found.class_ids == wanted.class_ids).all()
    np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-3)
