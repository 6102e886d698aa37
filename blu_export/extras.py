"""Optional packages: which extra brings each, and a clear error where one is absent."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from typing import Any

from blu_export.cache import adopt
from blu_export.errors import MissingDependencyError

PROJECT = "blu-export"
"""Its name as pip knows it."""

EXTRAS = {
    "cpu": ("onnxruntime", "openvino"),
    "gpu": ("tensorrt", "cuda"),
    "rtx": ("tensorrt_rtx_bindings", "onnxruntime_ep_nv_tensorrt_rtx", "cuda"),
    "export": ("onnx", "h5py"),
    "train": (
        "tensorflow",
        "keras",
        "tf2onnx",
        "filelock",
        "fsspec",
        "s3fs",
        "matplotlib",
        "tensorboard",
        "yaml",
    ),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "grpc", "tritonclient"),
    "client": ("httpx",),
    "otel": ("opentelemetry",),
    "batch": ("pyarrow",),
    "ray": ("ray",),
    "notebook": ("pandas", "supervision"),
    "video": ("av",),
}
"""Importable packages by extra of this project."""

PURPOSES = {
    "cpu": "fast inference on the processor: ONNX Runtime and OpenVINO",
    "gpu": "inference on NVIDIA GPUs: TensorRT, and ONNX Runtime's GPU build (instead of the extra cpu)",
    "rtx": "TensorRT-RTX engines for a named GPU, built on a machine without one",
    "export": "Keras weights: export to ONNX, and inference on them, without TensorFlow",
    "train": "training and the Keras reference (train-cpu: with the smaller TensorFlow)",
    "serve": "the HTTP and gRPC server",
    "client": "blu_export.client: photos to a running blu serve",
    "otel": "OpenTelemetry traces of blu serve",
    "batch": "blu batch: large sets of photos, in folders or buckets, to Parquet or COCO",
    "ray": "blu batch and blu serve on a Ray cluster",
    "notebook": "detections as pandas tables and for supervision: found.to_pandas(), found.to_supervision()",
    "video": "videos, streams, and overlays as H.264: PyAV",
}
"""What each extra is for."""

KEEPERS = {
    "KERAS_HOME": ("~/.keras", "keras"),
    "MPLCONFIGDIR": ("~/.config/matplotlib", "matplotlib"),  # Keras imports it
}
"""By variable: where packages of the extra train make files when they are imported, and the folder of our cache."""

GREETING = ("tensorflow", "keras")
"""Packages that bring TensorFlow, which greets on stderr while it is imported."""
_GREETINGS = re.compile(rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:")
"""Lines of its log below an error."""


def import_extra(module: str) -> Any:
    """Import an optional package, or a module of one; TensorFlow without its greetings.

    Raises:
        MissingDependencyError: it is not installed; the fix says what to install.
    """
    if module.partition(".")[0] in EXTRAS["train"]:
        for variable, (usual, name) in KEEPERS.items():
            adopt(variable, usual, name)
    try:
        with _no_greetings() if module in GREETING else nullcontext():
            return import_module(module)
    except ModuleNotFoundError as error:
        if (missing := missing_extra(error)) is None:
            raise
        raise missing from error


def missing_extra(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """The error to show when an optional package is not installed; None for any other module."""
    package = (error.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return MissingDependencyError(
                f"This needs the package {package}, which is not installed.",
                f"Install it with: {install_command(extra)}",
            )
    return None


def install_command(extra: str) -> str:
    """What to type for an extra: the source that this installation came from, with the extra added to it."""
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        origin = json.loads(metadata.distribution(PROJECT).read_text("direct_url.json") or "null")
    except (metadata.PackageNotFoundError, ValueError):  # the source tree is on the path, uninstalled
        return f"pip install '.[{extra}]' in the clone"
    if origin is None:  # from a package index
        return f"pip install '{PROJECT}[{extra}]'"
    url = str(origin["url"])
    if "dir_info" not in origin:
        version_control = origin.get("vcs_info", {}).get("vcs", "")
        return f"pip install '{PROJECT}[{extra}] @ {version_control}{'+' * bool(version_control)}{url}'"
    editable = "-e " if origin["dir_info"].get("editable") else ""
    return f"pip install {editable}'{url2pathname(urlsplit(url).path)}[{extra}]'"


@contextmanager
def _no_greetings() -> Iterator[None]:
    """Hold back what is written to stderr, and let all of it through afterwards but TensorFlow's greetings.

    TensorFlow 2.21 writes them before it looks at TF_CPP_MIN_LOG_LEVEL, from C++. The descriptor is the whole
    process's, so this is for its main thread alone. Who sets the level to 0 or 1, or BLU_DEBUG, sees everything.
    """
    level = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "0" if os.environ.get("BLU_DEBUG") else "2")
    if level in ("0", "1") or sys.stderr is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    from tempfile import TemporaryFile

    with TemporaryFile() as held:
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            held.seek(0)
            for line in held:
                if not _GREETINGS.match(line):
                    os.write(2, line)
