"""The names that we use of TensorRT and CUDA exist: in the real bindings, which need neither libraries nor a GPU.

TensorRT's own wheels of bindings come from PyPI; what is in them is listed, not imported. Without an index
these tests skip.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from blu_export.tensorrt.libraries import is_installed, tensorrt_rtx

PACKAGE = Path(__file__).resolve().parents[2] / "blu_export"
FILES = [
    PACKAGE / "export" / "engine.py",
    *(PACKAGE / "tensorrt" / f"{name}.py" for name in ("builder", "inspector", "lane")),
]
FILES += [PACKAGE / "runtime" / "tensorrt.py"]
VERSIONS = ("10.16.1.11", "11.4.0.106")
RTX_ONLY = {"ComputeCapability", "CudaGraphStrategy"}
"""Names that only TensorRT-RTX has."""
STUBS = "tensorrt-stubs==10.13.0.35.1"


def uses() -> set[tuple[str, ...]]:
    """Every ``(class, attribute)`` and ``(module name, …)`` of TensorRT that our code reads.

    Found are the names after ``trt.``, and the attributes of variables that are annotated as ``tensorrt.X``.
    """
    found: set[tuple[str, ...]] = set()
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                found |= set(_uses(function))
    return found


def _uses(function: ast.FunctionDef) -> Iterator[tuple[str, ...]]:
    kinds = {}
    for node in ast.walk(function):
        annotated = node.annotation if isinstance(node, ast.arg | ast.AnnAssign) else None
        name = node.arg if isinstance(node, ast.arg) else getattr(getattr(node, "target", None), "id", None)
        if annotated is not None and name and (kind := re.match(r"tensorrt\.(\w+)", ast.unparse(annotated))):
            kinds[name] = kind[1]
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute):
            root, *rest = ast.unparse(node).split(".")
            if root == "trt" and all(name.isidentifier() for name in rest):
                yield tuple(rest)
            elif root in kinds and len(rest) == 1:
                yield (kinds[root], rest[0])


def test_uses_are_found() -> None:
    found = uses()
    assert {
        ("Builder", "build_serialized_network"),
        ("IBuilderConfig", "set_timing_cache"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "device_memory_size_v2"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ILogger", "Severity", "ERROR"),
    } <= found
    assert len(found) > 50


def download(requirement: str) -> Path:
    """The wheel of a requirement, fetched once; skips the test where there is no index."""
    name, version = requirement.split("==")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blu-export-tests" / "wheels"
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not (wheels := sorted(cache.glob(pattern))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache)]
        command += ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64", requirement]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            pytest.skip(f"{requirement} cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
        wheels = sorted(cache.glob(pattern))
    return wheels[0]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("cuda", ["cu12", "cu13"])
def test_names_are_in_tensorrts_bindings(version: str, cuda: str) -> None:
    with zipfile.ZipFile(download(f"tensorrt-{cuda}-bindings=={version}")) as wheel:
        library = next(name for name in wheel.namelist() if name.endswith("/tensorrt.so"))
        strings = wheel.read(library)
        source = wheel.read("tensorrt_bindings/__init__.py").decode()
    names = {name for use in uses() for name in use if not RTX_ONLY & set(use)} - {"__name__", "__version__"}
    # Linkers let a string share the end of a longer one, so what stands before a name says nothing.
    assert not {name for name in names if name.encode() + b"\0" not in strings}
    assert f'__version__ = "{version}"' in source
    # The file says what is fp16 or int8: what TensorRT 11 has lost, we do not use.
    assert not names & {"FP16", "INT8", "int8_calibrator"}


def test_tensorrt_11_has_lost_what_10_had() -> None:
    """The check above can fail: a name that is gone in 11 is not found there."""
    found = {}
    for version in VERSIONS:
        with zipfile.ZipFile(download(f"tensorrt-cu13-bindings=={version}")) as wheel:
            found[version] = b"\0int8_calibrator\0" in wheel.read("tensorrt_bindings/tensorrt.so")
    assert found == dict(zip(VERSIONS, (True, False), strict=True))


@pytest.mark.long
def test_calls_fit_tensorrts_type_stubs(tmp_path: Path) -> None:
    """mypy, with the published stubs of TensorRT instead of none: attributes, arguments and their types."""
    pytest.importorskip("mypy")
    with zipfile.ZipFile(download(STUBS)) as wheel:
        wheel.extractall(tmp_path)
    stub = tmp_path / "tensorrt_bindings" / "tensorrt.pyi"
    text = stub.read_text(encoding="utf-8")
    # As published, the stubs are not valid Python: an argument called "in", and one without default after others.
    text = re.sub(r"\bin: ", "in_: ", text).replace("channel_axis: int)", "channel_axis: int = 0)")
    stub.write_text(text, encoding="utf-8")
    config = tmp_path / "mypy.ini"
    config.write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\nwarn_unused_ignores = false\n"
        "[mypy-cuda.*,cv2.*,keras.*,onnx.*,onnxruntime.*,openvino.*,pycocotools.*,tensorflow.*,tensorrt_libs.*]\n"
        "ignore_missing_imports = true\nfollow_imports = skip\n"
        "[mypy-tensorrt,tensorrt_bindings.*]\nignore_errors = true\n"  # the stubs' own
    )
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path / "cache")]
    environment = os.environ | {"MYPYPATH": str(tmp_path)}
    root = PACKAGE.parent
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True, cwd=root, env=environment)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not is_installed("tensorrt-rtx"), reason="TensorRT-RTX is not installed")
def test_names_are_in_tensorrt_rtx() -> None:
    trt = tensorrt_rtx()
    for use in uses():
        owner = trt
        for name in use:
            assert hasattr(owner, name), f"TensorRT-RTX has no {'.'.join(use)}"
            owner = getattr(owner, name)
    for name in ("num_compute_capabilities", "set_compute_capability"):
        assert hasattr(trt.IBuilderConfig, name)
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert hasattr(trt.CudaGraphStrategy, "WHOLE_GRAPH_CAPTURE")


def test_names_are_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")
    sources = "".join((PACKAGE / "tensorrt" / f"{name}.py").read_text(encoding="utf-8") for name in ("cuda", "lane"))
    names = set(re.findall(r'"(cuda[A-Z]\w+)"', sources)) | set(re.findall(r"runtime\.(cuda\w+)", sources))
    errors = {name for name in names if name.startswith("cudaError")} - {"cudaError_t"}
    kinds = {"cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"}
    assert len(names) > 30 and kinds <= names
    for name in errors:
        assert hasattr(runtime.cudaError_t, name), name
    for name in kinds:
        assert hasattr(runtime.cudaMemcpyKind, name), name
    assert hasattr(runtime.cudaStreamCaptureMode, "cudaStreamCaptureModeThreadLocal")
    for name in names - errors - kinds:
        assert hasattr(runtime, name), name
