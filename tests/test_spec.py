"""ModelSpec: JSON round trip, settings, and refusals that name the field."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.errors import ModelFileError, UsageError
from blu_export.spec import SPEC_VERSION, ModelSpec, resnet_blocks, resnet_name

SPEC = ModelSpec(class_names=("BG", "top", "skirt"), backbone="resnet50", provenance={"weights_sha256": "ab"})


def test_json_round_trip() -> None:
    again = ModelSpec.from_json(SPEC.to_json())
    assert again == SPEC
    assert again.rpn_anchor_scales == (32, 64, 128, 256, 512)
    assert again.to_json() == SPEC.to_json()


def test_defaults_are_the_originals() -> None:
    assert (SPEC.canvas, SPEC.pre_nms_limit, SPEC.post_nms_rois_inference) == ((1024, 1024), 6000, 1000)
    assert SPEC.replace(image_resize_mode="pad64").canvas is None


def test_canvases() -> None:
    fit = SPEC.replace(image_resize_mode="fit")
    assert (fit.canvas, fit.largest_canvas) == (None, (1024, 1024))
    camera = SPEC.with_settings(["image_resize_mode=rectangle", "image_canvas=576,1024"])
    assert camera.canvas == camera.largest_canvas == (576, 1024)
    assert SPEC.replace(image_resize_mode="pad64").largest_canvas is None
    for wrong in ("0,0", "576,1000", "-64,64", "64,16384"):
        with pytest.raises(UsageError, match="image_canvas"):
            SPEC.with_settings(["image_resize_mode=rectangle", f"image_canvas={wrong}"])
    with pytest.raises(UsageError, match="image_max_dim"):
        fit.replace(image_max_dim=1000)


def test_a_spec_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPEC.backbone = "resnet101"  # type: ignore[misc]
    with pytest.raises(TypeError):
        SPEC.provenance["weights_sha256"] = "cd"  # type: ignore[index]


def test_the_settings_in_the_docs_are_possible() -> None:
    text = (Path(__file__).parents[1] / "docs" / "export.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [re.findall(r"--set (\S+=\d+)", line) for line in text.splitlines() if line.startswith("blu export")]
    assert any(commands)
    for settings in commands:
        SPEC.with_settings(settings)


def test_settings_take_numbers_words_and_tuples() -> None:
    changed = SPEC.with_settings(
        ["image_min_dim=512", "IMAGE_MAX_DIM=512", "image_resize_mode=pad64", "mean_pixel=1,2,3.5",
         "rpn_anchor_ratios=[0.5, 1]", "class_names=BG,hat", "mask_shape=28,28"]
    )  # fmt: skip
    assert (changed.image_min_dim, changed.image_max_dim) == (512, 512)
    assert changed.image_resize_mode == "pad64"
    assert changed.mean_pixel == (1, 2, 3.5)
    assert changed.rpn_anchor_ratios == (0.5, 1)
    assert changed.class_names == ("BG", "hat")


def test_settings_are_taken_as_a_config_has_them() -> None:
    changed = SPEC.with_settings(
        ["IMAGE_MIN_DIM = None", "IMAGE_MAX_DIM=256", "RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)", "IMAGE_MIN_SCALE=None",
         "IMAGE_RESIZE_MODE='square'", "MEAN_PIXEL=[1, 2, 3.5]", "MASK_SHAPE=28, 28", 'CLASS_NAMES=("BG", "hat")']
    )  # fmt: skip
    assert (changed.image_min_dim, changed.image_max_dim, changed.image_min_scale) == (0, 256, 0)
    assert changed.rpn_anchor_scales == (8, 16, 32, 64, 128)
    assert changed.image_resize_mode == "square"
    assert changed.mean_pixel == (1, 2, 3.5)
    assert changed.class_names == ("BG", "hat")
    assert SPEC.with_settings(["image_max_dim=256"]).canvas == (256, 256)


def test_resnets_are_named_by_their_blocks() -> None:
    assert resnet_blocks("resnet50") == (3, 4, 6, 3)
    assert resnet_blocks("resnet-3-4-8-3") == (3, 4, 8, 3)
    assert resnet_blocks("efficientnet_lite0") is None
    for blocks in ((3, 4, 23, 3), (2, 2, 30, 1)):
        assert resnet_blocks(resnet_name(blocks)) == blocks
    assert SPEC.replace(backbone="resnet-3-4-8-3").backbone == "resnet-3-4-8-3"
    for name in ("resnet-3-4-6", "resnet-3-4-0-3", "resnet-3-4-999-3"):
        with pytest.raises(UsageError, match="backbone"):
            SPEC.replace(backbone=name)


def test_whole_numbers_are_floats_where_a_float_belongs() -> None:
    """An int among the constants of a graph would be of another type."""
    changed = SPEC.with_settings(["detection_min_confidence=1", "image_min_scale=0"])
    assert isinstance(changed.detection_min_confidence, float)
    assert isinstance(ModelSpec.from_json(SPEC.to_json().replace("0.7,", "1,")).rpn_nms_threshold, float)
    for absurd in ("detection_min_confidence=1" + 400 * "0", "detection_min_confidence=true"):
        with pytest.raises(UsageError, match="detection_min_confidence"):
            SPEC.with_settings([absurd])


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("image_max_dim", "FIELD=VALUE"),
        ("image_maxdim=512", "image_maxdim"),
        ("image_max_dim=500", "image_max_dim"),
        ("image_max_dim=wide", "image_max_dim"),
        ("image_max_dim=true", "image_max_dim"),
        ("image_max_dim=1e9", "image_max_dim"),
        ("image_min_dim=-1", "image_min_dim"),
        ("backbone=vgg", "backbone"),
        ("detection_min_confidence=1.5", "detection_min_confidence"),
        ("detection_min_confidence=NaN", "detection_min_confidence"),
        ("rpn_anchor_scales=1,2", "rpn_anchor_scales"),
        ("rpn_anchor_scales=1,2,3,4,Infinity", "rpn_anchor_scales"),
        ("mean_pixel=1,2", "mean_pixel"),
        ("pre_nms_limit=1" + 5000 * "0", "pre_nms_limit"),
        ("mean_pixel=" + 5000 * "[", "mean_pixel"),
        ("mask_shape=20,20", "mask_shape"),
        ("class_names=BG", "class_names"),
        ("backbone_strides=4,8,16,32,100", "backbone_strides"),
    ],
)
def test_bad_settings_are_usage_errors_that_name_the_field(setting: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        SPEC.with_settings([setting])


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "{", '{"class_names": 3}', '{"no_such_field": 1}', "[" * 100_000]
)
def test_foreign_json_is_a_model_file_error(text: str) -> None:
    with pytest.raises(ModelFileError, match="my.onnx"):
        ModelSpec.from_json(text, "my.onnx")


def test_a_newer_spec_asks_for_an_upgrade() -> None:
    newer = json.loads(SPEC.to_json()) | {"version": SPEC_VERSION + 1, "something_new": 1}
    with pytest.raises(ModelFileError, match="newer"):
        ModelSpec.from_json(json.dumps(newer))


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json_is_a_spec_or_a_model_file_error(value: object) -> None:
    with pytest.raises(ModelFileError):
        ModelSpec.from_json(json.dumps(value))


@given(
    st.sampled_from([f.name for f in dataclasses.fields(ModelSpec)]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.floats() | st.text(), max_size=6)
    | st.dictionaries(st.text(), st.integers()),
)  # fmt: skip
def test_any_value_of_any_field_is_taken_or_refused_by_name(name: str, value: object) -> None:
    values = json.loads(SPEC.to_json()) | {name: value}
    try:
        spec = ModelSpec.from_json(json.dumps(values))
    except ModelFileError as error:
        assert name in str(error) or "image_" in str(error) or "mask_shape" in str(error) or name == "version"
    else:
        assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "name", ["two\nlines", "carriage\rreturn", "tab\tbed", "nul\0", "line\u2028separator", "\ud800"]
)
def test_class_names_are_on_one_line(name: str) -> None:
    with pytest.raises(UsageError, match="class_names must be names on one line"):
        ModelSpec(("BG", name))


@pytest.mark.parametrize("name", ["short sleeve top", "кот", "👩‍🚀", "نیم‌فاصله"])
def test_class_names_of_any_script(name: str) -> None:
    assert ModelSpec(("BG", name)).class_names == ("BG", name)
