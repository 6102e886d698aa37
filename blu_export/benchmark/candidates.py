"""Candidates of a benchmark: one model on one runtime each."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from blu_export.contract import Metadata
from blu_export.detector import Detector
from blu_export.errors import BluError, ModelFileError, UsageError
from blu_export.model.checkpoints import resolve_weights
from blu_export.runtime import RUNTIMES_BY_SUFFIX, WEIGHT_SUFFIXES, RunnerOptions, load_runner
from blu_export.runtime.load import is_given
from blu_export.runtime.onnx_file import OnnxFile, spec_of
from blu_export.runtime.onnxruntime import takes_gpu
from blu_export.runtime.tuning import family, precision_path


@dataclass(frozen=True)
class Candidate:
    """One model on one runtime."""

    model: str
    """Name of the model: candidates of the same model are compared with each other."""
    runtime: str
    """Its name, with a peer's own description."""
    precision: str
    open: Callable[[int], Detector]
    """Loads it, for that many threads."""
    file: Path | None = None
    """The file, where it is one of ours. Of an .onnx file FLOPs are counted and stages profiled."""
    device: str | None = None
    canvas: str = ""
    """``fit`` and the like; empty for the square one."""
    ours: bool = True
    """False for a peer: what a user would have without this project."""
    same_network: bool = True
    """False for another network of equal input: the model's FLOPs say nothing about it."""
    notes: dict[str, Any] = field(default_factory=dict, compare=False)
    """More figures for its row."""

    @property
    def name(self) -> str:
        """Unique in a run."""
        return f"{self.model} · {self.shown} · {self.precision}"

    @property
    def shown(self) -> str:
        """The runtime as shown in the table: ``onnxruntime``, ``onnxruntime fit``."""
        return f"{self.runtime} {self.canvas}".strip()

    @property
    def key(self) -> tuple[Path, str] | None:
        """(file, runtime) as ``runtime.choice`` knows it; None for what it does not choose among."""
        if self.file is None or self.file.suffix != ".onnx" or self.device is not None or self.precision == "bf16":
            return None
        return self.file, self.runtime


def candidates_of(
    paths: Sequence[Path], runtimes: Sequence[str] = (), given: RunnerOptions | None = None
) -> list[Candidate]:
    """What can run these model files here, each once: ``*.onnx`` names the precisions beside a file, too.

    Args:
        paths: of the model files; a folder of checkpoints stands for its last one.
        runtimes: only these; default all.
        given: what is said about those of them that are Keras weights.

    Raises:
        ModelFileError, UsageError: see ``file_candidates``; settings are given, and there are no Keras weights.
    """
    paths = [resolve_weights(path)[0] for path in paths]
    if given is not None and is_given(given) and not any(path.suffix.lower() in WEIGHT_SUFFIXES for path in paths):
        raise UsageError("--config, --set and --ignore-layers are for Keras weights.", "Name a .h5 or .keras file.")
    names = model_names(paths)
    found = [replace(each, model=names[path]) for path in paths for each in file_candidates(path, runtimes, given)]
    return list({(os.path.abspath(each.file or ""), each.name): each for each in found}.values())


def model_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A name for each model file: its stem, with as many folders before it as tell files of one name apart.

    ``coat.h5`` and ``coat.onnx`` are one model on two runtimes, and ``coat.int8.onnx`` is one precision of it.
    """
    files = {path: Path(os.path.abspath(path)) for path in paths}
    files |= {path: precision_path(file, "float32") for path, file in files.items() if file.suffix == ".onnx"}
    names = {}
    for path, file in files.items():
        alike = {other for other in files.values() if other.stem == file.stem}
        parts = 1
        while len({other.parts[-parts:] for other in alike}) < len(alike):
            parts += 1
        names[path] = "/".join(file.with_suffix("").parts[-parts:])
    return names


def file_candidates(path: Path, runtimes: Sequence[str] = (), given: RunnerOptions | None = None) -> list[Candidate]:
    """What can run a model file here: each runtime, and what lies beside an .onnx file.

    That is its other precisions, and the same on canvases that fit (``NAME.fit.onnx``).

    Args:
        path: .onnx, .engine, .h5 or .keras.
        runtimes: only these; default all.
        given: what is said about Keras weights.

    Raises:
        ModelFileError: no such file, or it is not a model.
        UsageError: none of ``runtimes`` can run it.
    """
    suffix = path.suffix.lower()
    known = ("keras",) if suffix in WEIGHT_SUFFIXES else RUNTIMES_BY_SUFFIX.get(suffix)  # the others run its .onnx
    if known is None:
        raise ModelFileError(f"{path} is not a model file.", f"Model files are {', '.join(RUNTIMES_BY_SUFFIX)}.")
    chosen = [name for name in known if not runtimes or name in runtimes]
    if not chosen:
        raise UsageError(f"{' or '.join(runtimes)} cannot run {path}.", f"It runs in {' or '.join(known)}.")
    if known != RUNTIMES_BY_SUFFIX[".onnx"]:
        precision = "float32" if known == ("keras",) else "engine"
        weights = given if known == ("keras",) else None
        return [_of_file(path, path.stem, name, precision, given=weights) for name in chosen]
    from blu_export.runtime.onnx_file import read_onnx

    named = read_onnx(path)
    models = {path: named}
    if named.precision == "float32":
        models |= {beside: read_onnx(beside) for beside in family(path) if beside != path}
    devices = [None, "cuda"] if "onnxruntime" in chosen and takes_gpu() else [None]
    found = []
    for device in devices:
        for file, model in models.items():
            if model.precision == "fp16" and device is None and file != path:
                continue  # a processor computes it in float32, slower than the exact file
            for name in chosen if device is None else ["onnxruntime"]:
                stem = precision_path(path, "float32").stem
                made = _of_file(file, stem, name, model.precision, device)
                found.append(replace(made, canvas=_canvas(model, file), notes=_parity(model)))
    if "openvino" in chosen and named.precision == "float32" and _has_bf16():
        found.append(replace(_of_file(path, path.stem, "openvino", "bf16"), canvas=_canvas(named, path)))
    return found


def _of_file(
    path: Path, model: str, runtime: str, precision: str, device: str | None = None, given: RunnerOptions | None = None
) -> Candidate:
    where = device or ("cpu" if path.suffix.lower() == ".onnx" else None)  # ONNX Runtime would take a GPU by itself

    def open_it(threads: int) -> Detector:
        options = replace(
            given or RunnerOptions(),
            runtime=runtime,
            precision="bf16" if precision == "bf16" else "file",
            device=where,
            threads=threads,
        )
        return Detector(load_runner(path, options))

    shown = "keras tf.function" if runtime == "keras" else f"{runtime} {device}" if device else runtime
    return Candidate(model, shown, precision, open_it, path, device, ours=runtime != "keras")


def _canvas(model: OnnxFile, path: Path) -> str:
    mode = spec_of(model, str(path)).image_resize_mode
    return "" if mode == "square" else mode


def _parity(model: OnnxFile) -> dict[str, Any]:
    """What was measured at the export, for people."""
    parity = model.json_metadata(Metadata.PARITY)
    if not isinstance(parity, dict) or "matched" not in parity or "instances" not in parity:
        return {}
    return {"parity": f"{parity['matched']} of {parity['instances']}"}


def _has_bf16() -> bool:
    try:
        from blu_export.runtime.openvino import has_bf16

        return has_bf16()
    except BluError:  # openvino is not installed
        return False
