"""Results of ``python -m benchmarks serve``: merged with earlier ones, as tables, and in the docs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs" / "serve.md"
MARK, MARK_END = "<!-- results: benchmarks/serve.py --docs -->", "<!-- end of results -->"
ATTACKS_MARK, ATTACKS_END = "<!-- attacks: benchmarks/serve.py --docs -->", "<!-- end of attacks -->"
IDLE_BEFORE_MB = 178
BEFORE = {
    "0.3 MB of JSON: a long string among the pixels": "400 after 5.6 s; 1,321 MB; health 5.5 s",
    "19.8 MB of JSON lists, twice at once": "400; 732 MB; health 7.4 s; regular photos up to 12.3 s",
    "progressive JPEG of 6,000 scans, 0.5 MB, twice": (
        "504 after 30 s, and so half of the regular photos; SIGTERM takes 21 s"
    ),
    "JPEG of 4 million markers, 16 MB, twice": "504 after 30 s; 671 MB; a regular photo 504",
    "PNG of a million chunks, 12 MB, twice": "504 after 30 s; 402 MB; a regular photo 504",
    "BigTIFF of 900,000 tags, 18 MB, twice": "422 after 9.5 s; regular photos up to 9.2 s",
    "PNG whose EXIF has 20,000 tags of 10 MB each, twice": "200 after 4.3 s",
    "WebP of 49 megapixels, four at once": "200 after 4.8 to 10.8 s; 1,626 MB",
    "26 silent `ModelInfer` on one gRPC connection": "every other photo over gRPC `RESOURCE_EXHAUSTED`",
    "chunks of one byte, two connections": "health 11.5 to 15.9 s; no regular photo answered",
    "answers of 100 MB over gRPC that no one reads": (
        "20 of them: 2,489 MB in the server, 1,022 MB 35 s after the clients left"
    ),
    "400 connections where 256 files may be open": "3.2 MB of log in 4 s",
}
"""What the same attacks did before there were limits against them, on a machine that ran other programs too."""


def merged(new: dict[str, Any], path: Path) -> dict[str, Any]:
    """``new`` with the other scenarios of an earlier run of the same model on the same kind of machine."""
    if not path.exists():
        return new
    old = json.loads(path.read_text())
    if any(old.get(key) != new[key] for key in ("sha256", "quick")) or _kind(old) != _kind(new):
        return new
    return new | {"scenarios": old["scenarios"] | new["scenarios"]}


def _kind(result: dict[str, Any]) -> dict[str, Any]:
    """Of the machine; its memory, of which the system keeps a little, differs from one to the next."""
    return {key: value for key, value in result["machine"].items() if key != "memory_gib"}


def markdown(result: dict[str, Any]) -> str:
    """The results as a table, and those of attacks as one of its own."""
    return "\n".join(filter(None, (scenarios_table(result), attacks_table(result))))


def scenarios_table(result: dict[str, Any]) -> str:
    """A row for each scenario but the attacks; empty where there are none."""
    rows = {name: values for name, values in result["scenarios"].items() if name != "attacks"}
    if not rows:
        return ""
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
    for name, values in rows.items():
        cells = [f"{key.replace('_', ' ')} {_cell(value)}" for key, value in values.items()]
        lines.append(f"| {name.replace('_', ' ')} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def attacks_table(result: dict[str, Any]) -> str:
    """A row for each attack, beside what it did before; empty where attacks were not measured."""
    attacks = result["scenarios"].get("attacks")
    if not attacks:
        return ""
    machine = result["machine"]
    length = "Short forms. " if result["quick"] else ""
    idle = [row["idle_mb"] for row in attacks.values()]
    lines = [
        f"{length}What hostile clients do to `{result['model']}` on {machine['processor']}, {machine['cores']} cores, "
        "the attackers on the same machine; each attack has a server of its own. Another client sends a regular photo "
        "every 0.3 s meanwhile, and one asks for `/v2/health/live` every 0.02 s: health is its longest wait. Memory is "
        f"the peak of all processes of the server, which take {IDLE_BEFORE_MB} MB before and {min(idle)} to {max(idle)}"
        " MB now when idle. *Before* is the server without these limits, on a busy Xeon.",
        "",
        "| attack | before | now |",
        "|---|---|---|",
        *(f"| {name} | {BEFORE.get(name, '–')} | {_attack_cell(row)} |" for name, row in attacks.items()),
        "",
        "Where answers are 100 MB, health waits while gRPC copies one: 0.06 s of the event loop's processor time.",
    ]
    return "\n".join(lines) + "\n"


def _attack_cell(row: dict[str, Any]) -> str:
    """What the attackers were told; what others noticed; figures of this attack alone."""
    health, regular = row["health"], row["regular"]
    parts = [
        _answers(row),
        f"{row['peak_mb']:,} MB",
        f"health {_seconds(health['max_s'])}" + (f", {health['failures']} failed" if health["failures"] else ""),
        f"regular photos {_answers(regular)}" + (f", {regular['wrong']} wrong" if regular["wrong"] else ""),
    ]
    if "grpc" in row:
        parts.append(f"photos over gRPC {_answers(row['grpc'])}")
    if "exit_s" in row:
        parts.append(f"SIGTERM takes {row['exit_s']:.1f} s, exit code {row['exit_code']}")
    if "server_later_mb" in row:
        parts.append(f"{row['server_later_mb']:,} MB in the server 35 s after the clients left")
    if "log_kb" in row:
        parts.append(f"{row['log_kb']:,} kB of log in 4 s")
    return "; ".join(parts)


def _answers(found: dict[str, Any]) -> str:
    """Statuses, how often each where there are several, and the seconds of the slowest."""
    statuses = found["statuses"]
    counts = ", ".join(f"{status}: {count}" for status, count in statuses.items())
    text = f"all {next(iter(statuses))}" if len(statuses) == 1 else counts
    return text if found["max_s"] is None else f"{text} within {_seconds(found['max_s'])}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 1 else f"{value:.2f} s"


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')}: {_cell(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value)) or "none"
    return "yes" if value is True else "no" if value is False else str(value)


def update_docs(result: dict[str, Any], docs: Path = DOCS) -> None:
    """Put each table between its marks of the docs; one that was not measured stays as it is."""
    from blu_export.files import atomic_write

    text = docs.read_text()
    if table := scenarios_table(result):
        text = _between(text, MARK, MARK_END, table, docs)
    if table := attacks_table(result):
        text = _between(text, ATTACKS_MARK, ATTACKS_END, table, docs)
    with atomic_write(docs) as temporary:
        temporary.write_text(text)


def _between(text: str, mark: str, end: str, new: str, docs: Path) -> str:
    before, found, rest = text.partition(mark)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise SystemExit(f"{docs} has no marks '{mark}' and '{end}'")
    return f"{before}{mark}\n{new}{end}{after}"
