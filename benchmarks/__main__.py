"""``python -m benchmarks NAME [OPTIONS]``: what this project measures. Without a name: speed.

    speed       every runtime side by side, beside what users would otherwise have
    canvases    canvases that fit beside the square one, by shape of the photo
    sizes       OpenVINO compiled for the size of the canvas beside dynamic sizes
    serve       the server: throughput, overload, crashes, hangs, reloads, a soak
    fuzz        the server, by mutations of valid requests, gRPC messages and pictures
    precision   fp16 and int8: matched instances, mask IoU and average precision
    memory      10,000 photos through one detector
    pipeline    photos per second that training is fed with
    unmold      masks in pixels of the photo, the original's way and ours
    gpu         a GPU: engines and ONNX Runtime, parity and share of the card's peak

``python -m benchmarks NAME --help`` lists the options of each.
"""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = ("speed", "canvases", "sizes", "serve", "fuzz", "precision", "memory", "pipeline", "unmold", "gpu")


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        print(__doc__)
        return
    name = "speed"
    if arguments and not arguments[0].startswith("-"):
        name = arguments.pop(0)
    if name not in NAMES:
        sys.exit(f"error: There is no benchmark '{name}'. Use one of {', '.join(NAMES)}.")
    sys.argv = [f"python -m benchmarks {name}", *arguments]
    import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
    main()
