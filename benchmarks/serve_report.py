"""Results of ``python -m benchmarks serve``: merged with earlier ones, as a table, and in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "serve.md"
MARK, MARK_END = "<!-- results: benchmarks/serve.py --docs -->", "<!-- end of results -->"


def merged(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """``new`` with the other scenarios of an earlier run of the same model on the same machine."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    if any(old.get(key) != new[key] for key in ("sha256", "machine", "quick")):
        return new
    return new | {"scenarios": old["scenarios"] | new["scenarios"]}


def markdown(result: dict[str, Any]) -> str:
    """The results as a table."""
    machine = result["machine"]
    length = "Short forms. " if result["quick"] else ""
    lines = [
        f"{length}Model `{result['model']}` (sha256 {result['sha256'][:12]}…) on {machine['processor']}, "
        f"{machine['cores']} cores, the load generator on the same machine. In a quiet server a photo takes "
        f"{result['unloaded_s']:.3f} s; with 8 clients in a closed loop it does {result['photos_per_s']:.2f} photos/s.",
        "",
        "| scenario | result |",
        "|---|---|",
    ]
    for name, values in result["scenarios"].items():
        cells = [f"{key.replace('_', ' ')} {_cell(value)}" for key, value in values.items()]
        lines.append(f"| {name.replace('_', ' ')} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return "yes" if value is True else "no" if value is False else str(value)


def update_docs(result: dict[str, Any], docs: Path = DOCS) -> None:
    """Put the table between the marks of the docs."""
    from blu_export.files import atomic_write

    text = docs.read_text()
    before, mark, rest = text.partition(MARK)
    _, end, after = rest.partition(MARK_END)
    if not (mark and end):
        raise SystemExit(f"{docs} has no marks '{MARK}' and '{MARK_END}'")
    with atomic_write(docs) as temporary:
        temporary.write_text(f"{before}{mark}\n{markdown(result)}{end}{after}")
