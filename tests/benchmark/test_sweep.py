"""A sweep over a limit: the same subnetworks, composed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from blu_export.benchmark.sweep import parse_sweep, sweep, sweep_table
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.errors import UsageError
from blu_export.image import decode
from blu_export.runtime.onnx_file import read_onnx, spec_of


def test_parse() -> None:
    assert parse_sweep("post_nms_rois_inference=1000,500") == ("post_nms_rois_inference", [1000, 500])
    for wrong in ("post_nms_rois_inference", "pre_nms_limit=many", "image_min_dim=64", "pre_nms_limit=1,,2"):
        with pytest.raises(UsageError, match="is not a sweep"):
            parse_sweep(wrong)


def test_a_small_model(small_onnx: Path, demo_photo: Path) -> None:
    names = spec_of(read_onnx(small_onnx), "small").class_names
    height, width = decode(demo_photo).shape[:2]
    everything = [[0.0, 0.0, width, 0.0, width, height, 0.0, height]]
    annotations = tuple(Annotation(k, (0, 0, height, width), everything) for k in range(1, len(names)))
    dataset = Dataset(names, (Record(1, str(demo_photo), height, width, annotations),), "made")
    result = sweep(small_onnx, "post_nms_rois_inference", [100, 1], dataset, 1, 1)
    assert [row["value"] for row in result["rows"]] == [100, 1]
    assert all(row["network_s"] > 0 and 0 <= row["box_ap"] <= 1 for row in result["rows"])
    assert sweep_table(result).count("\n") == 3
    timed = sweep(small_onnx, "post_nms_rois_inference", [100], None, 1, 1)
    assert timed["photos"] == 0
    assert sweep_table(timed).endswith("| – | – |")
    with pytest.raises(UsageError, match="post_nms_rois_inference"):
        sweep(small_onnx, "post_nms_rois_inference", [0], dataset, 1, 1)
