"""Learning rate, layer sets, loss scale."""

from __future__ import annotations

from itertools import pairwise

import pytest

from blu_export.spec import ModelSpec
from blu_export.train.config import TrainConfig
from blu_export.train.schedule import LossScale, cosine, is_backbone, learns, stage_rate
from blu_export.train.stages import LAYER_SETS


def test_cosine_with_warm_up() -> None:
    rates = [cosine(step, 100, 2.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.002)
    assert rates[5] == pytest.approx(2.0 * 0.5005)
    assert rates[10] == 2.0
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.001
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_each_stage_has_its_warm_up_and_its_rate() -> None:
    config = TrainConfig(layers="heads:2@0.2,all:4", learning_rate=0.1, warmup_steps=3)
    rates = [stage_rate(number, 10, config) for number in range(60)]
    assert (rates[3], rates[23]) == (0.2, 0.1)
    for first, end in ((0, 20), (20, 60)):
        assert rates[first] == pytest.approx(0.001 * max(rates[first:end]))
        assert rates[end - 1] < 0.02
        assert rates[first : first + 4] == sorted(rates[first : first + 4])
    short = [stage_rate(number, 10, TrainConfig(epochs=1, learning_rate=1.0, warmup_steps=500)) for number in range(10)]
    assert short.index(1.0) == 2  # a fifth of the stage


@pytest.mark.parametrize("backbone", ["resnet50", "efficientnet_lite0"])
def test_layer_sets_grow_towards_the_image(backbone: str) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN

    model = MaskRCNN(ModelSpec(class_names=("BG", "a"), backbone=backbone, image_resize_mode="none"))
    names = set(model.learned_layers())
    learned = {layers: {name for name in names if learns(name, layers)} for layers in LAYER_SETS}
    for smaller, larger in pairwise(LAYER_SETS):
        assert learned[smaller] < learned[larger]
    assert learned["all"] == names
    assert learned["heads"] == {name for name in names if not is_backbone(name)}
    assert {name.split("_")[0] for name in learned["heads"]} == {"fpn", "rpn", "mrcnn"}


def test_sets_of_resnet_are_its_stages() -> None:
    assert learns("res4f_branch2a", "4+")
    assert learns("bn5a_branch1", "4+")
    assert not learns("res3d_branch2c", "4+")
    assert not learns("bn_conv1", "3+")
    assert not learns("conv1", "3+")


def test_sets_of_lite0_end_at_the_strides() -> None:
    # Blocks 3, 5 and 11 halve the resolution: C3, C4 and C5 begin there.
    for first, layers, above in ((11, "5+", "4+"), (5, "4+", "3+"), (3, "3+", "all")):
        assert learns(f"block{first}_depthwise_conv", layers)
        assert not learns(f"block{first - 1}_project_bn", layers)
        assert learns(f"block{first - 1}_project_bn", above)
    assert not learns("stem_conv", "3+")


def test_loss_scale() -> None:
    scale = LossScale("float16")
    assert scale.scale == 2.0**15
    assert scale.may_overflow
    scale.update(finite=False)
    assert scale.scale == 2.0**14
    for _ in range(LossScale.GROWTH_STEPS):
        scale.update(finite=True)
    assert scale.scale == 2.0**15
    for _ in range(20):
        scale.update(finite=False)
    assert scale.scale == 1.0
    assert not scale.may_overflow
    plain = LossScale("bfloat16")
    plain.update(finite=False)
    assert plain.scale == 1.0
    assert LossScale("float16", 64.0, 3).scale == 64.0
