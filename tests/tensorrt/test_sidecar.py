"""The sidecar file, and the names of cards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blu_export.errors import ModelFileError, UsageError
from blu_export.spec import ModelSpec
from blu_export.tensorrt.sidecar import Batch, Canvases, Sidecar, read_sidecar
from blu_export.tensorrt.targets import CARDS, Target, parse_target


def make(**changes: Any) -> Sidecar:
    values: dict[str, Any] = {
        "engine_sha256": "a" * 64,
        "onnx_sha256": "b" * 64,
        "spec": ModelSpec(class_names=("BG", "coat"), image_min_dim=64, image_max_dim=64),
        "builder": "tensorrt-rtx",
        "builder_version": "1.7.1.116",
        "target": "t4",
        "capability": (7, 5),
        "precision": "fp16",
        "batch": Batch(1, 1, 8),
        "canvases": Canvases((64, 64), (64, 64), (64, 64)),
        "rebuild": "blu build-engine 'my model.onnx' --fp16 --target sm75 -o coat.engine",
    }
    return Sidecar(**(values | changes))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    sidecar = make(
        fallback_layers={"trunk/conv": "overflows"}, parity={"passed": True}, log={"warnings": 2}, reduced_share=0.98
    )
    assert sidecar.write(tmp_path / "coat.engine") == tmp_path / "coat.engine.json"
    assert read_sidecar(tmp_path / "coat.engine") == sidecar
    assert json.loads(sidecar.to_json())["spec"]["class_names"] == ["BG", "coat"]


def test_a_sidecar_of_version_1_is_read() -> None:
    values = json.loads(make(fallback_layers={"trunk/conv": "overflows"}).to_json()) | {"version": 1}
    values["kept"] = values.pop("fallback_layers")
    assert Sidecar.from_json(json.dumps(values)).fallback_layers == {"trunk/conv": "overflows"}


@pytest.mark.parametrize(
    "changes",
    [
        {"capability": [7]},
        {"capability": "t4"},
        {"batch": {"smallest": 2, "best": 1, "largest": 4}},
        {"batch": {"smallest": 0, "best": 1, "largest": 4}},
        {"batch": [1, 1, 1]},
        {"canvases": {"smallest": [64, 64], "best": [32, 64], "largest": [64, 64]}},
        {"canvases": {"smallest": [64], "best": [64], "largest": [64]}},
        {"canvases": [64, 64]},
        {"spec": {"class_names": []}},
        {"spec": None},
        {"rebuild": 5},
        {"engine_sha256": None},
        {"surprise": 1},
    ],
)
def test_values_of_the_wrong_kind(changes: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match="coat.engine.json"):
        Sidecar.from_json(json.dumps(json.loads(make().to_json()) | changes), "coat.engine.json")


@pytest.mark.parametrize("name", ["engine_sha256", "spec", "builder_version", "capability", "batch"])
def test_a_field_that_is_missing(name: str) -> None:
    values = json.loads(make().to_json())
    del values[name]
    with pytest.raises(ModelFileError, match=f"not an engine description.*{name}"):
        Sidecar.from_json(json.dumps(values))


def test_a_newer_sidecar() -> None:
    with pytest.raises(ModelFileError, match=r"newer blu.*Upgrade"):
        Sidecar.from_json(json.dumps({"version": 99}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(json.loads(make().to_json()))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3))
def test_nothing_in_a_sidecar_raises_anything_else(changes: dict[str, Any]) -> None:
    try:
        read = Sidecar.from_json(json.dumps(json.loads(make().to_json()) | changes))
    except ModelFileError:
        return
    assert 1 <= read.batch.smallest <= read.batch.best <= read.batch.largest


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises(ModelFileError):
        Sidecar.from_json(data)


def test_for_another_card_the_command_that_builds_for_this_one_is_said() -> None:
    with pytest.raises(ModelFileError, match="sm75.*NVIDIA A10 \\(sm86\\)") as caught:
        make().check_device(Path("coat.engine"), "NVIDIA A10", (8, 6))
    assert "blu build-engine 'my model.onnx' --fp16 --target sm86" in str(caught.value)
    assert "-o" not in str(caught.value), "it would overwrite the engine of the other card"


@pytest.mark.parametrize(
    ("text", "capability"),
    [("t4", (7, 5)), ("Tesla T4", (7, 5)), ("RTX 3090", (8, 6)), ("3090", (8, 6)), ("NVIDIA GeForce RTX 4090", (8, 9)),
     ("sm86", (8, 6)), ("SM_86", (8, 6)), ("8.6", (8, 6)), ("86", (8, 6)), ("sm120", (12, 0)), ("12.0", (12, 0))],
)  # fmt: skip
def test_names_of_cards(text: str, capability: tuple[int, int]) -> None:
    assert parse_target(text).capability == capability


@pytest.mark.parametrize("text", ["gtx1080x", "", "sm", "t5", "sm7", "8.66", "../t4"])
def test_no_such_card(text: str) -> None:
    with pytest.raises(UsageError, match="no target"):
        parse_target(text)


def test_cards_that_tensorrt_does_not_support_any_more() -> None:
    with pytest.raises(UsageError, match="older than Turing"):
        parse_target("sm70")


def test_targets_as_shown() -> None:
    assert all(str(parse_target(card)).startswith(f"{card} (sm") for card in CARDS)
    assert (str(Target("sm86", (8, 6))), Target("t4", (7, 5)).sm) == ("sm86", "sm75")
