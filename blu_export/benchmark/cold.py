"""A fresh process: how long until a model is loaded, and until the first photo's result is there.

Run as ``python -m blu_export.benchmark.cold MODEL PHOTO RUNTIME``; prints one JSON object. The clock starts
where the parent started the process, so the interpreter's own start is counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from blu_export.errors import BluError


def measure_cold(model: Path, photo: Path, runtime: str) -> dict[str, float]:
    """Start a fresh Python and detect once; an .onnx file on the processor.

    Returns:
        ``load_s`` (model ready) and ``first_result_s``, both seconds from the start of the process,
        and ``peak_memory_mib`` of the process.

    Raises:
        BluError: the process failed; the message carries its last line.
    """
    command = [sys.executable, "-m", "blu_export.benchmark.cold", str(model), str(photo), runtime, repr(time.time())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BluError(f"A fresh process could not run {model} in {runtime}: {last[0]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def peak_memory_mib() -> float:
    """The most memory that this process has held, in MiB; 0 where the system does not tell."""
    try:
        # Not getrusage: on Linux its maximum includes the parent's, from before the exec.
        status = Path("/proc/self/status").read_text()
        return float(status.partition("VmHWM:")[2].split()[0]) / 2**10
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def _main(model: str, photo: str, runtime: str, started: str) -> dict[str, Any]:
    import blu_export

    detector = blu_export.load(model, runtime=runtime, device="cpu" if model.endswith(".onnx") else None)
    loaded = time.time()
    detector(photo)
    finished = time.time()
    return {
        "load_s": loaded - float(started),
        "first_result_s": finished - float(started),
        "peak_memory_mib": peak_memory_mib(),
    }


if __name__ == "__main__":
    print(json.dumps(_main(*sys.argv[1:])))
