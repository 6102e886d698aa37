"""Reading the engine inspector's report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blu_export.errors import CheckFailedError
from blu_export.tensorrt.inspector import LayerReport, read_report
from blu_export.tensorrt.sidecar import UNKNOWN


def row(name: str, form: str = "Half", metadata: str = "", **more: Any) -> dict[str, Any]:
    """As TensorRT writes it with detailed verbosity."""
    inputs = [{"Name": "x", "Dimensions": [1, 64, 8, 8], "Format/Datatype": form}]
    return {"Name": name, "LayerType": "CaskConvolution", "Inputs": inputs, "Metadata": metadata} | more


def read(*rows: Any, layers: tuple[str, ...] = ("trunk/a", "trunk/b")) -> dict[str, str]:
    return dict(read_report(json.dumps({"Layers": list(rows), "Bindings": []}), layers).kinds)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ("Half", "half"),
        ("Channel major FP16 format where channel % 8 == 0", "half"),
        ("Two wide channel vectorized row major FP16 format", "half"),
        ("Int8", "int8"),
        ("Thirty-two wide channel vectorized row major Int8 format", "int8"),
        ("Row major linear FP32", "float32"),
        ("Float", "float32"),
        ("N/A due to dynamic shapes", UNKNOWN),
    ],
)
def test_formats(form: str, kind: str) -> None:
    assert read(row("trunk/a", form))["trunk/a"] == kind


def test_layers_are_found_in_fusions_and_in_metadata() -> None:
    found = read(row("trunk/a + trunk/relu"), row("__mye12", metadata="[ONNX Layer: trunk/b]\x1e[ONNX Layer: trunk/r]"))
    assert found == {"trunk/a": "half", "trunk/b": "half"}


def test_the_kernels_name_where_formats_are_not_shown() -> None:
    found = read(
        row("trunk/a", "N/A due to dynamic shapes", TacticName="turing_h1688cudnn_256x64_ldg8_relu_exp_small_nhwc_tn"),
        row("trunk/b", "N/A due to dynamic shapes", TacticName="volta_scudnn_128x64_relu_s884"),
    )
    assert found == {"trunk/a": "half", "trunk/b": "float32"}


def test_what_says_nothing_is_unknown() -> None:
    fused = row("{ForeignNode[trunk/a...trunk/b]}", metadata="[ONNX Layer: trunk/a]", LayerType="Myelin")
    assert set(read(fused, "trunk/b").values()) == {UNKNOWN}
    reformat = row("trunk/a", LayerType="Reformat")
    assert read(reformat)["trunk/a"] == UNKNOWN


def test_unknown_is_not_passed() -> None:
    report = LayerReport({"a": "half", "b": UNKNOWN})
    assert (report.share, report.note()) == (UNKNOWN, "1 half, 1 unknown")
    assert LayerReport({}).share == UNKNOWN


@pytest.mark.parametrize(("full", "share"), [(0, 1.0), (5, 0.95), (6, 0.94), (100, 0.0)])
def test_the_share(full: int, share: float) -> None:
    report = LayerReport({f"layer{i}": "float32" if i < full else "half" for i in range(100)})
    assert report.share == pytest.approx(share)
    if share >= 0.95:
        report.require("Fix.")
    else:
        with pytest.raises(CheckFailedError, match=r"layer0, .*Fix\."):
            report.require("Fix.")
