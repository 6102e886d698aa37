"""Training settings: TOML, --set, validation."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.errors import UsageError
from blu_export.spec import ModelSpec
from blu_export.train.config import DataConfig, RunConfig, TargetConfig, TrainConfig, from_mapping
from blu_export.train.stages import Stage
from blu_export.train.toml import write_toml

TOML = """
weights = "imagenet"
[data]
train = "photos"
[model]
backbone = "resnet50"
[train]
epochs = 7
learning_rate = 1
canvas = [384, 256]
loss_weights = { mrcnn_mask = 2.0 }
[train.augment]
scale = [0.5, 2]
"""


def test_the_training_crop_is_the_largest_canvas_unless_said() -> None:
    from blu_export.train.fit import training_canvas

    spec = ModelSpec(class_names=("BG", "coat"), image_min_dim=128, image_max_dim=256)
    for mode, canvas in (("square", (256, 256)), ("fit", (256, 256)), ("rectangle", (128, 256))):
        changed = spec.replace(image_resize_mode=mode, image_canvas=(128, 256))
        assert training_canvas(changed, TrainConfig()) == canvas
        assert training_canvas(changed, TrainConfig(canvas=(64, 64))) == (64, 64)
    with pytest.raises(UsageError, match="no canvas of its own"):
        training_canvas(spec.replace(image_resize_mode="pad64"), TrainConfig())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TOML)
    return path


def test_reads_nested_tables(file: Path) -> None:
    run = RunConfig.read(file)
    assert (run.weights, run.data, run.model) == ("imagenet", DataConfig("photos"), {"backbone": "resnet50"})
    assert (run.train.epochs, run.train.canvas, run.train.learning_rate) == (7, (384, 256), 1.0)
    assert run.train.augment.scale == (0.5, 2.0)
    assert run.train.targets.rois_per_image == 200


def test_options_win_over_the_file_and_settings_over_both(file: Path) -> None:
    run = RunConfig.read(file, ["train.epochs=9", "model.rpn_channels=64"], {"train.epochs": 8, "train.batch": None})
    assert run.train.epochs == 9
    assert run.train.batch == TrainConfig().batch
    assert run.model["rpn_channels"] == 64


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("train.layers=heads:5,all:20", "heads:5,all:20"),
        ("train.canvas=512,256", (512, 256)),
        ("train.canvas=[512, 256]", (512, 256)),
        ('train.layers="all"', "all"),
        ("train.ema=0", 0.0),
    ],
)
def test_set_reads_values(setting: str, value: object) -> None:
    name = setting.partition("=")[0].removeprefix("train.")
    assert getattr(RunConfig.read(None, [setting]).train, name) == value


@pytest.mark.parametrize("setting", ["model.IMAGE_MIN_DIM = None", "model.image_min_dim=0"])
def test_settings_of_the_model_are_written_as_in_a_config(setting: str) -> None:
    config = RunConfig.read(None, [setting, "model.RPN_ANCHOR_SCALES=(8, 16, 32, 64, 128)", "model.mean_pixel=1,2,3"])
    assert config.model == {"image_min_dim": 0, "rpn_anchor_scales": (8, 16, 32, 64, 128), "mean_pixel": (1, 2, 3)}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=3", "no setting train.epoch"),
        ("train.augment.flips=1", "no setting train.augment.flips"),
        ("train.epochs=many", "train.epochs must be of type int"),
        ("train.epochs=true", "train.epochs must be of type int"),
        ("train.epochs=0", "train.epochs must be at least 1"),
        ("train.canvas=500,512", "multiples of 64"),
        ("train.canvas=512,512,512", "height and width"),
        ("train.augment.scale=1", "must be a list"),
        ("train.augment.scale=1,2,3", "must have 2 values"),
        ("train.optimizer=adam", "sgd, adamw"),
        ("train.layers=6+", "train.layers '6\\+'"),
        ("train.layers=heads:5,all", "needs epochs in stages"),
        ("train.layers=heads:x", "not a layer schedule"),
        ("train.layers=heads:0,all:2", "at least one epoch in each stage"),
        ("train.layers=heads:1@fast", "'@fast' is not a learning rate"),
        ("train.layers=heads:1@-0.1", "'@-0.1' is not a learning rate"),
        ("train.batch=-1", "train.batch must not be negative"),
        ("train.unreadable=2", "train.unreadable must be 0 to 1"),
        ("train.batch=3", "multiple of train.accumulate"),
        ("train.loss_weights.mask=2", "unknown losses"),
        ("train=3", "must be a table"),
        ("train.epochs", "not TABLE.FIELD=VALUE"),
        ("data.imges=x", "no setting data.imges. In .data.: train, val, images, more, cutouts, backgrounds, limit"),
        ("data.images=2017", "data.images must be of type str, not 2017"),
        ("data.limit=abc", "data.limit must be of type int"),
        ("data.limit=-1", "data.limit must be at least 1, or 0 for all"),
        ("model.depth=3", "no setting model.depth. In .model.: backbone, "),
        ("train.steps_per_epoch=-1", "train.steps_per_epoch must not be negative"),
        ("train.seed=-1", "train.seed must not be negative"),
        ("train.augment.scale=0,1", "train.augment.scale must be a smallest and a largest factor, both positive"),
        ("train.augment.scale=1,0", "train.augment.scale must be a smallest"),
        ("train.augment.scale=1,Infinity", "train.augment.scale must be a smallest"),
        ("train.augment.flip=1.5", "train.augment.flip must be 0 to 1"),
        ("train.augment.empty=-0.1", "train.augment.empty must be 0 to 1"),
        ("train.augment.smallest=-1", "train.augment.smallest must not be negative"),
        ("train.augment.person=0,1", "train.augment.person must be a smallest and a largest factor"),
        (
            'train.augment={"scenes": 0.6, "empty": 0.6}',
            "train.augment.scenes and train.augment.empty must be at most 1",
        ),
        ("train.augment.rotation=-5", "train.augment.rotation must be 0 to 180"),
        ("train.targets.max_gt_instances=0", "train.targets.max_gt_instances must be at least 1"),
        ("train.targets.mini_mask_shape=28,0", "train.targets.mini_mask_shape must be height and width"),
        ("train.targets.roi_positive_share=0", "train.targets.roi_positive_share must be more than 0"),
        ("train.targets.rpn_negative_iou=0.8", "train.targets.rpn_negative_iou must be 0 to"),
        ("train.targets.rois_per_image=3", "train.targets.rois_per_image times roi_positive_share must be at least 1"),
        ("train.targets.proposals=133", "train.targets.proposals must be at least 134 for rois_per_image 200"),
        ("train.epochs.x=1", "train.epochs.x is not inside a table"),
    ],
)
def test_impossible_settings_are_named(setting: str, message: str) -> None:
    settings = ["train.accumulate=2", "train.batch=4", "train.epochs=2"] if setting != "train=3" else []
    with pytest.raises(UsageError, match=message):
        _ = RunConfig.read(None, [*settings, setting]).train.stages


def test_annotated_boxes_are_candidates_too() -> None:
    config = TargetConfig(proposals=34, propose_ground_truth=True)
    assert (config.candidates, config.rois_per_image - config.positive_rois) == (134, 134)
    with pytest.raises(UsageError, match="proposals must be at least 34"):
        dataclasses.replace(config, proposals=33)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_text("[train")
    for wrong in (path, tmp_path / "absent.toml"):
        with pytest.raises(UsageError, match=wrong.name):
            RunConfig.read(wrong)


def test_stages() -> None:
    config = TrainConfig(layers="heads:2,4+:1,all:3")
    assert config.stages == (Stage("heads", 2), Stage("4+", 1), Stage("all", 3))
    assert config.total_epochs == 6
    assert [config.stage_of(epoch) for epoch in range(7)] == [0, 0, 1, 2, 2, 2, 2]
    assert TrainConfig(layers="3+", epochs=5).stages == (Stage("3+", 5),)


def test_written_config_reads_back(tmp_path: Path) -> None:
    run = RunConfig.read(
        None, ["train.canvas=384,256", 'data.train=a\\b"c', "train.loss_weights.rpn_class=2", "weights=x"]
    )
    path = tmp_path / "config.toml"
    write_toml(path, dataclasses.asdict(run))
    assert RunConfig.read(path) == run


values = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3),
)
keys = st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1)


@given(st.dictionaries(keys, values | st.dictionaries(keys, values, max_size=3), max_size=5))
def test_toml_round_trip(tmp_path_factory: pytest.TempPathFactory, tables: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("toml") / "x.toml"
    write_toml(path, tables)
    assert tomllib.loads(path.read_text("utf-8")) == tables


def test_values_of_another_type_are_refused() -> None:
    with pytest.raises(UsageError, match="weights must be of type str"):
        from_mapping(RunConfig, {"weights": 3}, "")
