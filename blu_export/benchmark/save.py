"""Benchmark results as files: JSON, Markdown, plots; and the README's table between its marks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blu_export.benchmark.report import markdown
from blu_export.errors import MissingDependencyError, UsageError
from blu_export.files import atomic_write

TABLE_STARTS = "<!-- benchmark table: made by python -m benchmarks --tables -->"
TABLE_ENDS = "<!-- end of benchmark table -->"


def save_results(result: dict[str, Any], folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Write benchmark.json, benchmark.md and, where matplotlib is installed, plots; returns what was written."""
    json_path, text_path, bars_path = (folder / f"benchmark.{suffix}" for suffix in ("json", "md", "png"))
    write_text(json_path, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    write_text(text_path, markdown(result))
    written = [json_path, text_path]
    try:
        from blu_export.benchmark.plots import plot_bars, plot_curves

        with atomic_write(bars_path) as temporary:
            plot_bars(result, temporary)
        written.append(bars_path)
        for model, facts in result["models"].items():
            if "curves" in facts:
                path = folder / f"curves-{model.replace('/', '-')}.png"
                with atomic_write(path) as temporary:
                    plot_curves(facts["curves"], model, temporary)
                written.append(path)
    except MissingDependencyError as error:
        say(f"no plots: {error}")
    return written


def insert_table(path: Path, table: str, marks: tuple[str, str] = (TABLE_STARTS, TABLE_ENDS)) -> None:
    """Put a table between the marks of a Markdown file: the lines before and after it.

    Raises:
        UsageError: the file has no marks.
    """
    before, start, rest = path.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise UsageError(f"{path} has no place for the table.", f"Add the lines {marks[0]} and {marks[1]}.")
    write_text(path, f"{before}{start}\n{table.rstrip()}\n{end}{after}")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
