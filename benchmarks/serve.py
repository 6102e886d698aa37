"""``blu serve`` under load, overload, faults and abuse, on loopback; one command, results as JSON and Markdown.

    python -m benchmarks serve [--model garments.onnx] [--quick] [--only overload,kill]
    python -m benchmarks serve --docs     # write the newest tables into docs/serve.md

Every answer is compared with what the same photo gets from a quiet server. Results go to
benchmarks/results/serve.json; ``--only`` replaces these scenarios in it. The load generator runs on the
machine that it measures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.overhead import overhead
from benchmarks.serve_abuse import abuse, bombs, slow_loris
from benchmarks.serve_attacks import attacks
from benchmarks.serve_costs import decoding, direct, transfer
from benchmarks.serve_faults import hang, kill, reload, terminate
from benchmarks.serve_load import overload, saturation, soak, steady
from benchmarks.serve_report import DOCS, RESULTS, markdown, merged, update_docs
from benchmarks.serve_target import Target, blu_target

Scenario = Callable[[], Awaitable[dict[str, Any]]]


def scenarios(target: Target, model: Path, quick: bool) -> dict[str, Scenario]:
    """Everything that is measured, by name, in order."""
    short, long = (10.0, 10.0) if quick else (30.0, 60.0)

    async def runner_alone() -> dict[str, Any]:
        return await asyncio.to_thread(direct, model, target.photos, short)

    return {
        "direct": runner_alone,
        "overhead": lambda: overhead(target, model, 20 if quick else 100, short),
        "transfer": lambda: transfer(model, target.photos, 5 if quick else 20),
        "decoding": lambda: decoding(model, target.photos, 20 if quick else 100),
        "saturation": lambda: saturation(target, short),
        "steady": lambda: steady(target, long),
        "overload": lambda: overload(target, long),
        "soak": lambda: soak(target, 30.0 if quick else 600.0),
        "kill": lambda: kill(target, short),
        "hang": lambda: hang(target, 10.0),
        "terminate": lambda: terminate(target, short),
        "reload": lambda: reload(target, short),
        "abuse": lambda: abuse(target, 120 if quick else 1000),
        "bombs": lambda: bombs(target),
        "slow_loris": lambda: slow_loris(target, 300, short),
        "attacks": lambda: attacks(target, quick),
    }


async def run(model: Path, only: Sequence[str], quick: bool) -> dict[str, Any]:
    """Measure; the result as JSON values."""
    from blu_export.benchmark.machine import describe
    from blu_export.files import sha256_of

    target = blu_target(model)
    say("learning the right answers")
    await target.learn()
    found: dict[str, Any] = {}
    for name, scenario in scenarios(target, model, quick).items():
        if only and name not in only:
            continue
        say(name)
        found[name] = await scenario()
        say(f"  {json.dumps(found[name])}")
    return {
        "model": model.name,
        "sha256": sha256_of(model),
        "machine": describe(),
        "quick": quick,
        "unloaded_s": round(target.unloaded, 4),
        "photos_per_s": round(target.rate, 3),
        "scenarios": found,
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    from blu_export.embedded import embedded
    from blu_export.files import atomic_write

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model file; default: the embedded model")
    parser.add_argument("--quick", action="store_true", help="short forms, about eight minutes")
    parser.add_argument("--only", default="", help="names of scenarios, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.json", help="where the results go")
    parser.add_argument("--docs", action="store_true", help=f"only write the tables into {DOCS.name}")
    arguments = parser.parse_args()
    if arguments.docs:
        update_docs(json.loads(arguments.out.read_text()))
        return
    only = [name for name in arguments.only.split(",") if name]
    with tempfile.TemporaryDirectory() as folder:
        # A copy: no one may change the file meanwhile.
        source = arguments.model or embedded()
        model = Path(shutil.copy(source, Path(folder) / source.name))
        result = asyncio.run(run(model, only, arguments.quick))
    result = merged(result, arguments.out)
    with atomic_write(arguments.out) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    print(markdown(result))
