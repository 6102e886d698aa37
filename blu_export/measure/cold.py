"""A fresh process: how long until a model is loaded, and until the first photo's result is there.

Run as ``python -m blu_export.measure.cold MODEL PHOTO RUNTIME PRECISION``; prints one JSON object. The
clock starts where the parent started the process, so the interpreter's own start is counted.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from blu_export.errors import BluError

_KIB = 1024


def measure_cold(model: Path, photo: Path, runtime: str, precision: str) -> dict[str, float]:
    """Start a fresh Python and detect once.

    Returns:
        ``load_s`` (model ready) and ``first_result_s``, both seconds from the start of the process,
        and ``peak_memory_mib`` of the process.

    Raises:
        BluError: the process failed; the message carries its last line.
    """
    arguments = [str(model), str(photo), runtime, precision, repr(time.time())]
    done = subprocess.run(
        [sys.executable, "-m", "blu_export.measure.cold", *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BluError(f"A fresh process could not run {model} in {runtime}: {last[0]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _main(arguments: list[str]) -> dict[str, Any]:
    import blu_export

    model, photo, runtime, precision, started = arguments
    detector = blu_export.load(model, runtime=runtime, precision=precision)
    loaded = time.time()
    detector(photo)
    finished = time.time()
    return {
        "load_s": loaded - float(started),
        "first_result_s": finished - float(started),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _KIB,
    }


if __name__ == "__main__":
    print(json.dumps(_main(sys.argv[1:])))
