"""The subnetworks written from the tensors, against those traced from the Keras model by tf2onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from golden_cases import CONFIGURATIONS, long_but

from blu_export.model import direct
from blu_export.model.weights import keras_model, read_weights, save_weights
from blu_export.spec import ModelSpec

OPSET = 18
LIGHT = ModelSpec(
    ("BG", "a", "b"),
    backbone="efficientnet_lite0",
    image_min_dim=128,
    image_max_dim=128,
    top_down_pyramid_size=16,
    rpn_channels=16,
    fpn_classif_fc_layers_size=16,
    mask_channels=16,
    pool_size=3,
)
SPECS = {
    "light": LIGHT,
    "shallow resnet": LIGHT.replace(backbone="resnet-1-2-1-1", rpn_anchor_ratios=(1,)),
    "four channels": LIGHT.replace(image_channel_count=4, mean_pixel=(1, 2, 3, 4)),
    "canvas that follows": LIGHT.replace(image_resize_mode="pad64"),
}


def both(path: Path, spec: ModelSpec) -> tuple[dict[str, onnx.ModelProto], dict[str, onnx.ModelProto]]:
    from blu_export.export import learned

    weights = read_weights(path)
    return direct.subnetworks(weights.layers, spec, OPSET), learned.subnetworks(keras_model(weights, spec), OPSET)


def outputs(part: onnx.ModelProto, x: Any) -> list[Any]:
    session = ort.InferenceSession(part.SerializeToString(), providers=["CPUExecutionProvider"])
    return list(session.run(None, {part.graph.input[0].name: x}))


def assert_equal(ours: dict[str, onnx.ModelProto], traced: dict[str, onnx.ModelProto], side: int) -> None:
    assert list(ours) == list(traced)
    random = np.random.default_rng(0)
    for name, part in ours.items():
        onnx.checker.check_model(part, full_check=True)
        other = traced[name]
        assert [(i.name, i.type) for i in part.graph.input] == [(i.name, i.type) for i in other.graph.input]
        assert [o.name for o in part.graph.output] == [o.name for o in other.graph.output]
        assert {t.name: list(t.dims) for t in part.graph.initializer if "const" not in t.name} == {
            t.name: list(t.dims) for t in other.graph.initializer if "const" not in t.name
        }
        sizes = [d.dim_value or side for d in part.graph.input[0].type.tensor_type.shape.dim[1:]]
        x = random.normal(0, 50 if name == "trunk" else 1, (2 if side < 512 else 1, *sizes)).astype(np.float32)
        for found, wanted in zip(outputs(part, x), outputs(other, x), strict=True):
            assert found.shape == wanted.shape
            np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", SPECS)
def test_both_converters_give_the_same_outputs(tmp_path: Path, name: str) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN

    model = MaskRCNN(SPECS[name])
    random = np.random.default_rng(0)
    for layer in model.learned_layers().values():
        for weight in layer.weights:
            if "kernel" not in weight.name:  # normalization and biases that are all different, variances positive
                weight.assign(random.uniform(0.5, 1.5, weight.shape))
    save_weights(model, tmp_path / "model.h5")
    assert_equal(*both(tmp_path / "model.h5", SPECS[name]), side=128)


@pytest.mark.parametrize("cfg", long_but("resnet50_small"))
def test_both_converters_agree_on_the_golden_weights(golden_weights: Callable[[str], Path], cfg: str) -> None:
    from blu_export.model.given import Given

    path = golden_weights(cfg)
    spec = read_weights(path).make_spec(Given.of(settings=CONFIGURATIONS[cfg]))
    assert_equal(*both(path, spec), side=spec.image_max_dim)
