"""Benchmark results as pictures (PNG, by matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from blu_export.detector import STAGES
from blu_export.extras import import_extra

_STAGE_COLORS = ("#b9c4d0", "#7d93ab", "#2a6f97", "#e07a3f")
_LINE_COLORS = ("#2a6f97", "#e07a3f", "#7d93ab")


def plot_bars(result: dict[str, Any], path: Path) -> None:
    """Median time of each candidate as bars split into stages, one panel per model."""
    plt = _pyplot()
    models = list(result["models"])
    heights = [sum(row["model"] == model for row in result["rows"]) for model in models]
    figure, axes = plt.subplots(
        len(models), 1, figsize=(9, 1.2 * len(models) + 0.42 * sum(heights)), squeeze=False, height_ratios=heights
    )
    for axis, model in zip(axes[:, 0], models, strict=True):
        rows = [row for row in result["rows"] if row["model"] == model][::-1]
        labels = [f"{row['runtime']} {row['precision']}" for row in rows]
        left = [0.0] * len(rows)
        for stage, color in zip(STAGES, _STAGE_COLORS, strict=True):
            widths = [row["stages"][stage] * 1e3 for row in rows]
            axis.barh(labels, widths, left=left, label=stage, color=color)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_title(model, loc="left", fontsize=10)
        axis.set_xlabel("ms per photo")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(ncols=len(STAGES), fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
    _save(figure, path)


def plot_curves(curves: dict[str, dict[str, Any]], title: str, path: Path) -> None:
    """Small plots of cost against one quantity each.

    Args:
        curves: as ``curves.measure_curves`` gives them.
    """
    plt = _pyplot()
    figure, axes = plt.subplots(1, len(curves), figsize=(3.3 * len(curves), 2.8), squeeze=False)
    for axis, curve in zip(axes[0], curves.values(), strict=True):
        for (line, seconds), color in zip(curve["seconds"].items(), _LINE_COLORS, strict=False):
            axis.plot(curve["x"], [1e3 * s for s in seconds], "o-", color=color, label=line, markersize=4)
        axis.set_xlabel(curve["unit"])
        axis.set_ylabel("ms")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=7, frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    _save(figure, path)


def _pyplot() -> Any:
    import_extra("matplotlib").use("Agg")
    return import_extra("matplotlib.pyplot")


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})  # the same bytes for the same numbers
    _pyplot().close(figure)
