"""The table of canvases: ratios by round, and over Keras where it took part."""

from __future__ import annotations

from benchmarks.canvases import table


def test_ratios() -> None:
    row = {
        "model": "resnet50-512",
        "shape": "4:3",
        "photo": "640x480",
        "runtime": "onnxruntime int8",
        "spread": 1.2,
        "seconds": {"square": [0.4, 0.4, 0.8], "fit": [0.2, 0.1, 0.4], "keras": [1.0, 1.0, 1.0]},
        "found": {"square": 24, "fit": 25},
    }
    alone = row | {"runtime": "openvino int8", "seconds": {"square": [0.4], "fit": [0.2]}}
    elsewhere = alone | {"model": "default", "spread": 1.1}
    lines = table({"machine": {"processor": "One"}, "rows": [row, alone, elsewhere]}).splitlines()
    assert lines[2] == "| default | 640x480 | openvino int8 | 400 ms | 200 ms | 2.00× | – | 24, 25 | 1.10 |"
    assert lines[3] == "| resnet50-512 | 640x480 | onnxruntime int8 | 400 ms | 200 ms | 2.00× | 5.00× | 24, 25 | 1.20 |"
    assert lines[4].endswith("| 2.00× | 5.00× | 24, 25 | 1.20 |")
    assert lines[-1].startswith("One; spread: ")
