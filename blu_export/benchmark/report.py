"""Benchmark results for people: Markdown tables, and a comparison of two runs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blu_export.benchmark.run import RESULT_VERSION
from blu_export.benchmark.timing import NOISY_SPREAD
from blu_export.errors import BluError

REGRESSION = 1.05
"""Ratio of medians, new over old, above which a row is called slower."""

HEADLINE = (
    ("keras tf.function", "float32"),
    ("onnxruntime, naive tf2onnx", "float32"),
    ("onnxruntime", "float32"),
    ("openvino", "bf16"),
    ("onnxruntime", "int8"),
)
"""(runtime, precision) of the rows that are shown first; the others are compared with the first of them."""
FIT = " fit"
"""What ends the name of a runtime in rows on canvases that fit."""


def read_results(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON file.

    Raises:
        BluError: the file is missing or is not a benchmark result.
    """
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or result.get("version") != RESULT_VERSION or "rows" not in result:
            raise ValueError("no benchmark result of this version")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BluError(f"{path} cannot be read as a benchmark result: {reason}.", "Run blu benchmark again.") from error
    found: dict[str, Any] = result
    return found


def summary(result: dict[str, Any]) -> str:
    """The machine and one table per model."""
    blocks = ["\n".join(_machine_lines(result))]
    for model, facts in result["models"].items():
        rows = [row for row in result["rows"] if row["model"] == model]
        blocks.append(f"{_heading(model, facts)}\n\n" + _speed_table(rows))
    if result["skipped"]:
        blocks.append("\n".join(f"Not measured: {each['name']}: {each['why']}" for each in result["skipped"]))
    return "\n\n".join(blocks) + "\n"


def headline(result: dict[str, Any]) -> str:
    """The machine and one small table of all models: what the README shows.

    A model that is only there on canvases that fit is shown on those.
    """
    # Square rows come later, and win.
    rows = sorted(result["rows"], key=lambda row: not row["runtime"].endswith(FIT))
    medians = {
        (row["model"], row["runtime"].removesuffix(FIT), row["precision"]): row["end_to_end"]["p50"] for row in rows
    }
    baseline = HEADLINE[0]
    cells = []
    for runtime, precision in HEADLINE:
        found = [medians.get((model, runtime, precision)) for model in result["models"]]
        if not any(found):
            continue
        first = [medians.get((model, *baseline)) for model in result["models"]]
        times = [
            "–" if own is None else f"{_ms(own)} ms" + (f", {keras / own:.1f}×" if keras and own != keras else "")
            for own, keras in zip(found, first, strict=True)
        ]
        cells.append([runtime, precision, *times])
    models = [f"{name} ({'×'.join(map(str, facts['canvas']))})" for name, facts in result["models"].items()]
    lines = "\n".join(_machine_lines(result))
    return f"{lines}\n\n{_table(['runtime', 'precision', *models], cells)}\n"


def markdown(result: dict[str, Any]) -> str:
    """The whole result: the summary, then stages, distributions, throughput and fresh processes of each model."""
    blocks = [summary(result)]
    for model, facts in result["models"].items():
        rows = [row for row in result["rows"] if row["model"] == model]
        blocks += [f"### {model}", "Time of one photo, and its parts, in ms.", _time_table(rows)]
        blocks += ["Many photos a second, by batch; and a fresh process.", _load_table(rows)]
        if any(row.get("onnx_stages") for row in rows):
            blocks += ["Stages of the graph in ONNX Runtime, in ms.", _stage_table(facts, rows, result["peaks"])]
    return "\n\n".join(block.rstrip("\n") for block in blocks) + "\n"


def _machine_lines(result: dict[str, Any]) -> list[str]:
    machine = result["machine"]
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in result["peaks"].items())
    versions = ", ".join(
        f"{name} {machine['versions'][name]}"
        for name in ("tensorflow", "onnxruntime", "openvino")
        if name in machine["versions"]
    )
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, {machine['memory_gib']} GiB; {versions}. "
        f"Measured matrix peak: {peaks}. {result['date'][:10]}, commit {result['commit']}, "
        f"{result['settings']['repeats']} repeats, medians.",
    ]
    if result["spread"] > NOISY_SPREAD:
        lines += ["", f"**The machine was noisy** (spread {result['spread']:.2f}): small differences mean nothing."]
    return lines


def _heading(model: str, facts: dict[str, Any]) -> str:
    canvas = "×".join(map(str, facts["canvas"])) if facts["canvas"] else "any"
    work = f", {facts['gflop']:.0f} GFLOP" if facts["gflop"] else ""
    return f"**{model}** ({facts['backbone']}, {facts['classes']} classes, canvas {canvas}{work})"


def _speed_table(rows: list[dict[str, Any]]) -> str:
    accuracy = [name for name in ("box_ap", "mask_ap", "parity") if any(name in row["notes"] for row in rows)]
    head = ["runtime", "precision", "ms a photo", f"over {rows[0]['runtime']}", "of peak", "outside the network"]
    head += ["photos/s", "first result s", "instances", *(name.replace("_ap", " AP") for name in accuracy)]
    baseline = rows[0]["end_to_end"]["p50"]
    cells = []
    for row in rows:
        total, cold = row["end_to_end"]["p50"], row.get("fresh_process") or {}
        rates = row.get("photos_per_second", {})
        cells.append([
            f"**{row['runtime']}**" if row["ours"] else row["runtime"],
            row["precision"],
            _ms(total),
            f"{baseline / total:.2f}×",
            f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "–",
            f"{1 - row['stages']['run'] / sum(row['stages'].values()):.1%}",
            f"{max(rates.values()):.2f}" if rates else "–",
            f"{cold['first_result_s']:.2f}" if cold else "–",
            str(row["detections"]),
            *(_note(row["notes"].get(name)) for name in accuracy),
        ])  # fmt: skip
    return _table(head, cells)


def _time_table(rows: list[dict[str, Any]]) -> str:
    head = ["runtime", "precision", "p50", "p90", "p99", "fastest", "decode", "mold", "run", "unmold"]
    head += ["outside, 12 MP, 100 instances"]
    return _table(head, [
        [
            row["runtime"], row["precision"],
            *(_ms(row["end_to_end"][name]) for name in ("p50", "p90", "p99", "fastest")),
            *(_ms(row["stages"][name]) for name in ("decode", "mold", "run", "unmold")),
            f"{row['around_large']:.1%}",
        ]
        for row in rows
    ])  # fmt: skip


def _load_table(rows: list[dict[str, Any]]) -> str:
    batches = list(dict.fromkeys(name for row in rows for name in row.get("photos_per_second", {})))
    head = ["runtime", "precision", *(f"batch {n}" if n.isdecimal() else n for n in batches)]
    head += ["loaded s", "first result s", "peak MiB"]
    cells = []
    for row in rows:
        rates, cold = row.get("photos_per_second", {}), row.get("fresh_process") or {}
        found = [f"{rates[n]:.2f}" if n in rates else "–" for n in batches]
        found += [f"{cold[n]:.2f}" if cold else "–" for n in ("load_s", "first_result_s")]
        cells.append([row["runtime"], row["precision"], *found, f"{cold['peak_memory_mib']:.0f}" if cold else "–"])
    return _table(head, cells)


def _stage_table(facts: dict[str, Any], rows: list[dict[str, Any]], peaks: dict[str, float]) -> str:
    """One line a stage; for float32 its work and its share of the peak stand beside its time."""
    profiled = [row for row in rows if row.get("onnx_stages")]
    work = facts["gflop_by_stage"]
    stages = sorted({name for row in profiled for name in row["onnx_stages"]},
                    key=lambda name: -max(row["onnx_stages"].get(name, 0) for row in profiled))  # fmt: skip
    head = ["stage", "GFLOP", *(row["precision"] for row in profiled), "of float32 peak"]
    exact: dict[str, float] = next((row["onnx_stages"] for row in profiled if row["precision"] == "float32"), {})
    cells = []
    for stage in stages:
        gflop, seconds = work.get(stage, 0.0), exact.get(stage, 0.0)
        share = gflop * 1e9 / seconds / peaks["float32"] if gflop >= 0.1 and seconds else None
        cells.append([
            stage,
            f"{gflop:.1f}" if gflop >= 0.1 else "–",
            *(_ms(row["onnx_stages"].get(stage, 0.0)) for row in profiled),
            f"{share:.0%}" if share is not None else "–",
        ])  # fmt: skip
    return _table(head, cells)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def _note(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, list[str]]:
    """Ratios of medians, new over old, for the rows that both runs have.

    Returns:
        A Markdown table, and the names of the rows that became slower by more than REGRESSION.

    Raises:
        BluError: the runs have no row in common.
    """
    before = {_key(row): row for row in old["rows"]}
    cells, slower = [], []
    for row in new["rows"]:
        if (then := before.get(_key(row))) is None:
            continue
        first, second = then["end_to_end"]["p50"], row["end_to_end"]["p50"]
        name = " · ".join(_key(row))
        cells.append([name, _ms(first), _ms(second), f"{second / first:.2f}"])
        if second / first > REGRESSION:
            slower.append(f"{name}: {second / first:.2f}")
    if not cells:
        raise BluError(
            "The two results have no candidate in common.", "Benchmark the same models on the same runtimes."
        )
    table = _table(["candidate", "old ms", "new ms", "new / old"], cells) + "\n"
    if old["machine"]["processor"] != new["machine"]["processor"]:
        table += f"\nTwo machines: {old['machine']['processor']}, then {new['machine']['processor']}.\n"
    return table, slower


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["runtime"], row["precision"]
