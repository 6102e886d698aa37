"""What half and int8 cost a trained model: parity and average precision, by calibration method.

    python -m benchmarks precision DATASET              # models/garments.onnx, every photo of DATASET's val part
    python -m benchmarks precision DATASET --limit 40 --model coco.onnx

Ranges and layer costs come from photos of the train part, never from those that are judged. The rows of target
``tensorrt`` are emulations: the builder's graph, run on the processor with each rounding to half explicit.
Written to benchmarks/results/precision.json and .md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.models import photos_of
from blu_export.contract import Metadata
from blu_export.data.load import load_dataset
from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.embedded import embedded
from blu_export.errors import BluError
from blu_export.evaluate.coco import Evaluator
from blu_export.evaluate.detect import detect
from blu_export.files import atomic_write
from blu_export.graph.split import split
from blu_export.parity.match import match
from blu_export.parity.verify import TOLERANCES, ParityReport, PhotoParity
from blu_export.quantize.int8 import METHODS
from blu_export.quantize.precision import TypedSubnetworks, apply_precision, canvases, compose_typed
from blu_export.runtime.onnx_file import parse_onnx, read_onnx, spec_of
from blu_export.runtime.onnxruntime import OnnxRuntimeRunner

RESULTS = Path(__file__).resolve().parent / "results"
MAX_AP_LOSS = {"float32": 0.1, "fp16": 0.3, "int8": 1.0}
"""Points (hundredths) of average precision, of boxes and of masks, that a precision may cost a trained model."""


class Study:
    """A model, its data set, and the float32 file's own results on it.

    Args:
        model: float32, portable, as ``blu export onnx`` writes it.
        dataset: with annotated parts ``train`` and ``val``.
        limit: how many photos of ``val`` are judged, from the first on.
    """

    def __init__(
        self, model: Path, dataset: str, limit: int | None = None, say: Callable[[str], None] = lambda line: None
    ) -> None:
        import onnx

        self.say = say
        self.source = read_onnx(model)
        self.spec = spec_of(self.source, str(model))
        self.parts = split(onnx.load_from_string(self.source.data), self.spec)
        self.dataset = load_dataset(dataset, "val", limit=limit)
        self.evaluator = Evaluator(self.dataset)
        self.canvases = canvases(photos_of(dataset, "train"), self.spec)
        self.say(f"float32: {len(self.dataset)} photos")
        self.found, self.ap = self._judge(OnnxRuntimeRunner(self.source, "cpu"))

    def measure(self, precision: str, target: str, method: str = "minmax") -> dict[str, Any]:
        """Type the parts, run the photos, and compare with float32: JSON values."""
        typed = apply_precision(self.parts, self.spec, precision, target, self.canvases, method)
        self.say(f"{precision} for {target}, {method}: {len(typed.fallback_layers)} fallback layers")
        found, ap = self._judge(self._runner(typed))
        photos = tuple(
            PhotoParity(record.uri, match(first, second), first, second)
            for record, first, second in zip(self.dataset.records, self.found, found, strict=True)
        )
        parity = ParityReport("onnxruntime float32 on CPU", f"{precision} {target}", TOLERANCES[precision], photos)
        return {
            "precision": precision,
            "target": target,
            "method": method if precision == "int8" else "",
            "fallback_layers": dict(typed.fallback_layers),
            "ap": ap,
            "ap_loss": {kind: 100 * (self.ap[kind] - value) for kind, value in ap.items()},
            "parity": parity.to_json(),
        }

    def _runner(self, typed: TypedSubnetworks) -> OnnxRuntimeRunner:
        import onnx

        model = compose_typed(typed, self.spec, emulation=typed.target == "tensorrt")
        properties = {
            Metadata.SPEC: self.spec.to_json(),
            Metadata.TARGET: typed.target,
            Metadata.PRECISION: typed.precision,
        }
        onnx.helper.set_model_props(model, properties)
        return OnnxRuntimeRunner(parse_onnx(model.SerializeToString(), "typed"), "cpu")

    def _judge(self, runner: OnnxRuntimeRunner) -> tuple[list[Detections], dict[str, float]]:
        """Detections of every photo, and average precision (0..1) of boxes and masks."""
        found: list[Detections] = []

        class Kept(Detector):
            def stream(self, *arguments: Any, **settings: Any) -> Iterator[Any]:
                for photo in super().stream(*arguments, **settings):
                    found.append(photo.result())
                    yield photo

        with runner:
            rows = [row for photo in detect(Kept(runner), self.dataset) for row in photo]
        values = self.evaluator(rows).values
        return found, {"box": values["box_ap"], "mask": values["mask_ap"]}


def table(rows: list[dict[str, Any]], ap: dict[str, float]) -> str:
    """The rows as Markdown."""
    lines = [
        "| precision | target | ranges | matched | median mask IoU | box AP | mask AP | fallback layers |",
        "|---|---|---|---|---|---|---|---|",
        f"| float32 | portable | | | | {100 * ap['box']:.1f} | {100 * ap['mask']:.1f} | |",
    ]
    for row in rows:
        parity = row["parity"]
        matched = parity["matched"] / max(parity["instances"], 1)
        values = [row["precision"], row["target"], row["method"], f"{matched:.1%}"]
        values += [f"{parity.get('median_mask_iou', np.nan):.4f}"]
        values += [f"{100 * row['ap'][kind]:.1f} ({-row['ap_loss'][kind]:+.2f})" for kind in ("box", "mask")]
        lines.append(f"| {' | '.join([*values, str(len(row['fallback_layers']))])} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", help="folder with instances_train.json, instances_val.json and photos")
    parser.add_argument("--model", type=Path, help="default: the embedded model")
    parser.add_argument("--limit", type=int, help="judge only the first N photos")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    try:
        study = Study(
            arguments.model or embedded(), arguments.dataset, arguments.limit, lambda line: print(line, file=sys.stderr)
        )
        rows = [study.measure("fp16", target) for target in ("portable", "tensorrt")]
        rows += [study.measure("int8", target, method) for target in ("portable", "tensorrt") for method in METHODS]
    except BluError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    digest = hashlib.sha256(study.source.data).hexdigest()
    result = {"model_sha256": digest, "photos": len(study.dataset), "float32": study.ap, "rows": rows}
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = table(rows, study.ap)
    for name, content in (("precision.json", json.dumps(result, indent=2) + "\n"), ("precision.md", text)):
        with atomic_write(arguments.out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    print(text, end="")
