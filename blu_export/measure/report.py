"""Benchmark results for people: a Markdown table, plots, and a comparison of two runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blu_export.errors import BluError
from blu_export.measure.benchmark import RESULT_VERSION, STAGES
from blu_export.measure.timing import NOISY_SPREAD

REGRESSION = 1.05
"""Ratio of medians, new over old, above which a row is called slower."""


def read_results(path: Path) -> dict[str, Any]:
    """Read a benchmark's JSON file.

    Raises:
        BluError: the file is missing or is no benchmark result.
    """
    try:
        result = json.loads(path.read_text())
        if not isinstance(result, dict) or result.get("version") != RESULT_VERSION or "rows" not in result:
            raise ValueError("no benchmark result of this version")
    except (OSError, ValueError) as error:
        raise BluError(f"{path} cannot be read as a benchmark result: {error}.", "Run blu benchmark again.") from error
    found: dict[str, Any] = result
    return found


def markdown(result: dict[str, Any]) -> str:
    """The whole result as Markdown: machine, limits, one table per model."""
    machine = result["machine"]
    peaks = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in result["peaks"].items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads, {machine['memory_gib']} GiB. "
        f"Measured matrix peak: {peaks}. {result['date'][:10]}, commit {result['commit']}.",
    ]
    if result["spread"] > NOISY_SPREAD:
        lines += ["", f"**The machine was noisy** (spread {result['spread']:.2f}): small differences mean nothing."]
    for model, facts in result["models"].items():
        rows = [row for row in result["rows"] if row["model"] == model]
        lines += ["", *_model_table(model, facts, rows)]
    return "\n".join(lines) + "\n"


def _model_table(model: str, facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    canvas = "×".join(map(str, facts["canvas"])) if facts["canvas"] else "any"
    work = f", {facts['gflop']:.0f} GFLOP" if facts["gflop"] else ""
    ap = any("mask_ap" in row["notes"] for row in rows)
    head = [
        "runtime",
        "precision",
        "p50 ms",
        "p90",
        "faster",
        *(f"{s} ms" for s in STAGES),
        "of peak",
        "photos/s 1/4/8",
    ]
    head += ["first result s", "memory MiB", "instances", *(["mask AP"] if ap else [])]
    baseline = rows[0]["end_to_end"]["p50"]
    lines = [f"**{model}** ({facts['backbone']}, canvas {canvas}{work}); faster = over {rows[0]['runtime']}", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        times, cold = row["end_to_end"], row.get("fresh_process", {})
        name = f"**{row['runtime']}**" if row["ours"] else row["runtime"]
        cells = [name, row["precision"], _ms(times["p50"]), _ms(times["p90"]), f"{baseline / times['p50']:.2f}×"]
        cells += [_ms(row["stages"][stage]) for stage in STAGES]
        cells.append(f"{row['share_of_peak']:.0%}" if "share_of_peak" in row else "–")
        rates = row.get("photos_per_second", {})
        cells.append(" / ".join(f"{rates[b]:.2f}" if b in rates else "–" for b in ("1", "4", "8")))
        cells.append(f"{cold['first_result_s']:.2f}" if cold else "–")
        cells.append(f"{cold['peak_memory_mib']:.0f}" if cold else "–")
        cells.append(str(row["detections"]))
        if ap:
            cells.append(f"{row['notes']['mask_ap']:.3f}" if "mask_ap" in row["notes"] else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}" if seconds < 0.1 else f"{seconds * 1e3:.0f}"


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, list[str]]:
    """Ratios of medians, new over old, for the rows that both runs have.

    Returns:
        A Markdown table, and the names of the rows that became slower by more than REGRESSION.
    """
    before = {_key(row): row for row in old["rows"]}
    lines = ["| candidate | old ms | new ms | new / old |", "|---|---|---|---|"]
    slower = []
    for row in new["rows"]:
        if (then := before.get(_key(row))) is None:
            continue
        ratio = row["end_to_end"]["p50"] / then["end_to_end"]["p50"]
        name = " · ".join(_key(row))
        lines.append(f"| {name} | {_ms(then['end_to_end']['p50'])} | {_ms(row['end_to_end']['p50'])} | {ratio:.2f} |")
        if ratio > REGRESSION:
            slower.append(f"{name}: {ratio:.2f}")
    if len(lines) == 2:
        raise BluError(
            "The two results have no candidate in common.", "Benchmark the same models on the same runtimes."
        )
    return "\n".join(lines) + "\n", slower


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["model"], row["runtime"], row["precision"]


def plot_bars(result: dict[str, Any], path: Path) -> None:
    """Median time of each candidate as bars split into stages, one panel per model (PNG)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    models = list(result["models"])
    heights = [sum(row["model"] == model for row in result["rows"]) for model in models]
    figure, axes = plt.subplots(
        len(models), 1, figsize=(9, 1.2 * len(models) + 0.42 * sum(heights)), squeeze=False, height_ratios=heights
    )
    for axis, model in zip(axes[:, 0], models, strict=True):
        rows = [row for row in result["rows"] if row["model"] == model][::-1]
        labels = [f"{row['runtime']} {row['precision']}" for row in rows]
        left = [0.0] * len(rows)
        for stage, colour in zip(STAGES, ("#b9c4d0", "#7d93ab", "#2a6f97", "#e07a3f"), strict=True):
            widths = [row["stages"][stage] * 1e3 for row in rows]
            axis.barh(labels, widths, left=left, label=stage, color=colour)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_title(model, loc="left", fontsize=10)
        axis.set_xlabel("ms per photo")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(ncols=len(STAGES), fontsize=8, frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_curves(curves: dict[str, dict[str, list[float]]], path: Path) -> None:
    """Small plots of cost against one quantity each (PNG).

    Args:
        curves: title to ``{"x": [...], "seconds": [...]}``.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(3.2 * len(curves), 2.6), squeeze=False)
    for axis, (title, curve) in zip(axes[0], curves.items(), strict=True):
        axis.plot(curve["x"], [1e3 * s for s in curve["seconds"]], "o-", color="#2a6f97")
        axis.set_xlabel(title)
        axis.set_ylabel("ms per photo")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
