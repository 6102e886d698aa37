"""The table of canvases: ratios by runtime, and over Keras where it took part."""

from __future__ import annotations

from benchmarks.canvases import KERAS, table


def test_ratios() -> None:
    seconds = {"onnxruntime int8 square": 0.4, "onnxruntime int8 fit": 0.2}
    rows = [
        {"model": "coat", "photo": "640x480", "spread": 1.2, "seconds": seconds | {KERAS: 1.0}},
        {"model": "shoe", "photo": "640x960", "spread": 1.1, "seconds": seconds},
    ]
    lines = table({"machine": {"processor": "One"}, "rows": rows}).splitlines()
    assert lines[2] == "| coat | 640x480 | onnxruntime int8 | 400 ms | 200 ms | 2.00× | 5.00× |"
    assert lines[3].endswith("| 2.00× | – |")
    assert lines[-1] == "One; spread of a fixed piece of work 1.20."
