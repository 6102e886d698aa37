"""How many training samples the input pipeline makes a second, without a model.

    python -m benchmarks pipeline --dataset FOLDER [--config models/garments-first.toml] [--photos N] [--workers N]

The first pass decodes the photos, later ones find them in memory. Results also go to
benchmarks/results/pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from blu_export.data.load import load_dataset
from blu_export.data.pipeline import batches
from blu_export.spec import ModelSpec
from blu_export.train.config import RunConfig
from blu_export.train.samples import sample_maker

ROOT = Path(__file__).resolve().parent
RESULT = ROOT / "results" / "pipeline.json"


def measure(data: Any, batch: int) -> dict[str, float]:
    """Photos a second, and the processor time of each: the latter hardly suffers from a busy machine."""
    start, processor, count = time.perf_counter(), time.process_time(), 0
    for _ in data:
        count += batch
    seconds, busy = time.perf_counter() - start, time.process_time() - processor
    return {"photos_per_second": count / seconds, "processor_ms_per_photo": 1000 * busy / count}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--config", type=Path, default=ROOT.parent / "models" / "garments-first.toml")
    parser.add_argument("--photos", type=int, default=400, help="photos of a pass")
    parser.add_argument("--passes", type=int, default=4, help="passes that count, after the one that decodes")
    parser.add_argument("--workers", type=int, default=0, help="samples made at a time; default: the configuration's")
    arguments = parser.parse_args()
    run = RunConfig.read(arguments.config)
    dataset = load_dataset(arguments.dataset, "train", limit=arguments.photos)
    spec = ModelSpec(class_names=dataset.class_names).replace(**run.model)
    make = sample_maker(dataset, spec, run.train)
    batch, workers = run.train.batch, arguments.workers or run.train.workers
    steps = max(1, len(dataset) // batch)
    print(f"{len(dataset)} photos, canvas {make.config.canvas}, batch {batch}, {workers} workers", file=sys.stderr)
    results = {
        "first pass, decoding": measure(batches(make, batch, 0, steps, parallel=workers), batch),
        "later passes": measure(batches(make, batch, steps, steps * arguments.passes, parallel=workers), batch),
    }
    for name, (rate, busy) in ((name, result.values()) for name, result in results.items()):
        print(f"{name:<22} {rate:8.1f} photos/s, {busy:6.1f} ms of a core each")
    RESULT.parent.mkdir(exist_ok=True)
    setting = {
        "photos": len(dataset),
        "canvas": make.config.canvas,
        "batch": batch,
        "workers": workers,
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }
    RESULT.write_text(json.dumps({"setting": setting, "results": results}, indent=1) + "\n")
