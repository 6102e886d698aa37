"""Settings read from Python files that are never run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.errors import BluError, ModelFileError, UsageError
from blu_export.model.config_file import ConfigFile, read_config
from blu_export.model.given import Given, assumptions, backbone_line

BALLOONS = """
import os, skimage.draw
from mrcnn.config import Config
from mrcnn import utils
DATA = os.path.join(os.environ["HOME"], "data")

class HatConfig(Config):
    NAME = "hat"
    NUM_CLASSES = 1 + 2
    STEPS_PER_EPOCH = len(os.listdir(DATA))
    IMAGE_MIN_DIM = IMAGE_MAX_DIM = 64 * 4

class HatDataset(utils.Dataset):
    def load_hats(self, folder):
        self.add_class("hats", 2, "beret")
        self.add_class("hats", class_id=1, class_name="bowler")

if __name__ == "__main__":
    import argparse
    args = argparse.ArgumentParser().parse_args()
    if args.command == "train":
        config = HatConfig()
    else:
        class InferenceConfig(HatConfig):
            GPU_COUNT = 1
            DETECTION_MIN_CONFIDENCE = 0
"""


def read(tmp_path: Path, text: str, chosen: str = "") -> ConfigFile:
    path = tmp_path / "settings.py"
    path.write_text(text)
    return read_config(f"{path}:{chosen}" if chosen else str(path))


def test_a_file_in_the_style_of_the_samples(tmp_path: Path) -> None:
    config = read(tmp_path, BALLOONS)
    assert config.source == "settings.py:InferenceConfig"
    assert config.values == {"image_min_dim": 256, "image_max_dim": 256, "detection_min_confidence": 0}
    assert (config.num_classes, config.is_whole) == (3, True)
    assert config.ignored == ("GPU_COUNT", "NAME", "STEPS_PER_EPOCH")
    assert config.names_for(3) == ("bowler", "beret")
    assert config.names_for(5) is None
    assert read(tmp_path, BALLOONS, "HatConfig").source == "settings.py:HatConfig"
    with pytest.raises(UsageError, match="no class CapConfig"):
        read(tmp_path, BALLOONS, "CapConfig")


def test_the_file_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    read(tmp_path, f"open({str(mark)!r}, 'w')\nclass A(Config):\n    NAME = open({str(mark)!r}, 'w')\n")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("(8, 16) + (32, 64, 128)", (8, 16, 32, 64, 128)),
        ("[2 ** i for i in range(3, 8)]", (8, 16, 32, 64, 128)),
        ("tuple(SIZE // 2 * i for i in (1, 2))", (64, 128)),
        ("np.array([0.5, 0.25]) * 256", (128, 64)),
        ("RATIOS[:2]", (0.5, 1)),
        ("SIZES['big']", 512),
        ("None", None),
        ("-(-SIZE)", 128),
        ("SIZE if SIZE > 5 or True else 3", None),
        ("Config.RPN_ANCHOR_RATIOS", (0.5, 1, 2)),
        ("Base.DETECTION_MAX_INSTANCES * 2", 200),
        ("math.ceil(1.5)", 2),
    ],
)
def test_values_that_can_be_computed(tmp_path: Path, value: str, expected: Any) -> None:
    text = f"""
import math, numpy as np
from mrcnn.config import Config as Base
SIZE, RATIOS, SIZES = 128, [0.5, 1, 2], {{"big": 512}}
class A(Base):
    PRE_NMS_LIMIT = {value}
"""
    config = read(tmp_path, text)
    if "if" in value:  # comparisons are not computed
        assert "line 6: PRE_NMS_LIMIT" in config.unread["pre_nms_limit"]
    else:
        assert config.values["pre_nms_limit"] == expected


@pytest.mark.parametrize(
    "value",
    ["int(os.environ['N'])", "open('x').read()", "10 ** 10 ** 10", "[0] * 10 ** 12", "'%99999999999d' % 1", "f()",
     "x.y", "list(range(10 ** 12))", "().__class__.__bases__", "(lambda: 3)()"],
)  # fmt: skip
def test_a_setting_that_cannot_be_read_is_named_with_its_line(tmp_path: Path, value: str) -> None:
    config = read(tmp_path, f"import os\nclass A(Config):\n    IMAGE_MAX_DIM = {value}\n")
    assert config.unread["image_max_dim"].startswith("line 3: IMAGE_MAX_DIM = ")
    with pytest.raises(UsageError, match=r"line 3: IMAGE_MAX_DIM .*\n?.*--set IMAGE_MAX_DIM="):
        Given(config=config).spec({}, 2)
    assert Given(config=config, settings=("image_max_dim=256",)).spec({}, 2).image_max_dim == 256
    assert Given(config=config).spec({"image_max_dim": 512}, 2).image_max_dim == 512  # the tensors say it


def test_inheritance_instances_and_init(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
class Base(config.Config):
    IMAGE_MAX_DIM = 512
    POOL_SIZE = 5
    def __init__(self):
        self.POOL_SIZE = 6
class Mixed(Base):
    IMAGE_MAX_DIM = Base.IMAGE_MAX_DIM // 2
config = Mixed()
class InferenceConfig(config.__class__):
    IMAGES_PER_GPU = 1
found = InferenceConfig()
found.DETECTION_MIN_CONFIDENCE = 0.5
if input():
    found.PRE_NMS_LIMIT = 5
""",
    )
    assert config.values == {"image_max_dim": 256, "pool_size": 6, "detection_min_confidence": 0.5}
    assert "under a condition" in config.unread["pre_nms_limit"]


def test_bases_that_are_elsewhere_leave_the_rest_assumed(tmp_path: Path) -> None:
    config = read(tmp_path, "class A(hats.HatConfig):\n    IMAGE_MAX_DIM = 256\n")
    assert not config.is_whole
    assert "HatConfig is not in the file" in config.lines()[-1]
    spec = Given(config=config).spec({"backbone": "resnet50"}, 2)
    assert "image_max_dim" not in spec.assumed
    assert "image_min_dim" in spec.assumed


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("class_names = ['BG', 'a', 'b']", ("BG", "a", "b")),
        ("CLASS_NAMES = ('a', 'b')", ("a", "b")),
        ("NAMES = 'a,b'.split(',')\nfor i, n in enumerate(NAMES, 1):\n    d.add_class('s', i, n)", ("a", "b")),
        ("for i, n in {2: 'b', 1: 'a'}.items():\n    d.add_class('s', i, n)", ("a", "b")),
        ("d.add_class('s', 1, 'a')\nd.add_class('t', 1, 'b')", ("a", "b")),
        ("def f(self):\n    class_names = ['a', 'b']", ("a", "b")),
    ],
)
def test_class_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    config = read(tmp_path, f"{text}\nclass A(Config):\n    NUM_CLASSES = 3\n")
    assert config.names_for(3) == names
    spec = Given(config=config).spec({}, 3)
    assert spec.class_names[-2:] == ("a", "b")
    assert not spec.assumed


def test_class_names_that_cannot_be_read_are_noted_and_assumed(tmp_path: Path) -> None:
    text = (
        "for i in ids:\n    self.add_class('coco', i, coco.loadCats(i)[0]['name'])\nclass A(Config):\n    NAME = 'a'\n"
    )
    config = read(tmp_path, text)
    assert any("line 2: self.add_class" in note for note in config.notes)
    spec = Given(config=config).spec({}, 3)
    assert spec.assumed == ("class_names",)
    assert assumptions(spec) == "class names class_1, class_2 …"


def test_settings_that_contradict_the_weights_are_refused(tmp_path: Path) -> None:
    config = read(tmp_path, BALLOONS)
    with pytest.raises(UsageError, match="NUM_CLASSES 3, and the weights have 4 classes"):
        Given(config=config).spec({}, 4)


def test_what_is_not_given_is_assumed() -> None:
    spec = Given(settings=("IMAGE_MAX_DIM=256",)).spec({"backbone": "resnet50"}, 3)
    assert not {"backbone", "image_max_dim", "backbone_strides"} & set(spec.assumed)
    assert {"class_names", "image_min_dim", "mean_pixel"} <= set(spec.assumed)
    assert assumptions(spec).startswith("image_resize_mode square, image_min_dim 800, ")
    # A file that carries its spec assumes what that says, until it is given.
    again = Given(settings=("IMAGE_MIN_DIM=256",)).spec({}, 3, spec)
    assert set(spec.assumed) - set(again.assumed) == {"image_min_dim"}


def test_a_configuration_of_blu_train(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('weights = "coco"\n[model]\nimage_max_dim = 256\nrpn_anchor_ratios = [1]\n[train]\nepochs = 3\n')
    config = read_config(str(path))
    assert config.values == {"image_max_dim": 256, "rpn_anchor_ratios": (1,)}
    assert config.ignored == ("weights", "[train]")
    path.write_text("[model]\nnothing = 1\n")
    with pytest.raises(ModelFileError, match="holds more than settings"):
        read_config(str(path))


@pytest.mark.parametrize("text", ["class A(:", "\0", "x = " + "(" * 5000, "NAME = 3", ""])
def test_files_without_a_config_are_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(BluError, match=r"settings\.py"):
        read(tmp_path, text)


def test_files_that_would_take_for_ever_are_refused(tmp_path: Path) -> None:
    loop = "for i in range(9999):\n    for j in range(9999):\n        k = 1\n"
    with pytest.raises(ModelFileError, match="too long"):
        read(tmp_path, loop + "class A(Config):\n    NAME = 'a'\n")


@given(st.text(alphabet="()[]{}*+-/%,.:=\n abcdefCONFIG0123456789'self", max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.py"
    path.write_text(f"class A(Config):\n    NAME = 1\n{text}")
    with suppress(BluError):
        assert read_config(str(path)).source


def test_a_backbone_that_the_weights_do_not_have_is_said(tmp_path: Path) -> None:
    text = BALLOONS.replace('NAME = "hat"', 'NAME = "hat"\n    BACKBONE = "resnet50"')
    given = Given(config=read(tmp_path, text))
    assert given.spec({"backbone": "resnet101"}, 3).backbone == "resnet101"
    line = backbone_line(given, given.spec({"backbone": "resnet101"}, 3))
    assert "has BACKBONE resnet50, and the weights are those of resnet101" in line
    assert not backbone_line(given, given.spec({"backbone": "resnet50"}, 3))
