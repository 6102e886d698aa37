"""Where an ONNX model spends its time in ONNX Runtime: seconds by stage of the graph."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_UNNAMED = "other"


def profile_stages(
    model: Path, canvas: NDArray[np.uint8], window: NDArray[np.float32], threads: int, repeats: int = 5
) -> dict[str, float]:
    """Median seconds of each stage over ``repeats`` runs, from ONNX Runtime's own profiler.

    A stage is the first part of a node's name. Nodes that the runtime inserts itself (layout changes,
    copies) are counted as ``other``. Profiling itself costs a few per cent.
    """
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
        for _ in range(repeats + 1):
            session.run(None, {"canvas": canvas, "window": window})
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = _seconds_by_run(events)[1:]
    stages = sorted({stage for run in runs for stage in run})
    return {stage: float(np.median([run.get(stage, 0.0) for run in runs])) for stage in stages}


def _seconds_by_run(events: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Kernel time of each ``session.run``; a node inside a Loop is part of the Loop's own time."""
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    runs: list[dict[str, float]] = [defaultdict(float) for _ in starts]
    last_end = -1.0
    for event in sorted(_kernels(events), key=lambda e: (e["ts"], -e["dur"])):
        if event["ts"] < last_end:
            continue
        last_end = event["ts"] + event["dur"]
        run = int(np.searchsorted(starts, event["ts"], side="right")) - 1
        stage, slash, _ = event["name"].removeprefix("fused ").partition("/")
        runs[run][stage if slash else _UNNAMED] += event["dur"] / 1e6
    return runs


def _kernels(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e.get("cat") == "Node" and e.get("name", "").endswith("_kernel_time")]
