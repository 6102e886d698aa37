"""Starting weights: what is loaded, what stays random, what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from shapes import shapes, tiny_model, tiny_spec

from blu_export.errors import ModelFileError, UsageError
from blu_export.model.weights import save_weights

PHOTOS = shapes(2).images
CLASS_LAYERS = {"mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "shapes.h5"
    save_weights(tiny_model(), path)
    return path


def test_same_classes_load_everything(saved: Path) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import load_start

    model = MaskRCNN(tiny_spec())
    begun = load_start(model, str(saved), PHOTOS, 0)
    assert begun.fresh == ()
    for name, layer in tiny_model().learned_layers().items():
        for a, b in zip(layer.get_weights(), model.learned_layers()[name].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_classes_start_the_output_layers_anew(saved: Path) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import load_start

    model = MaskRCNN(tiny_spec(class_names=("BG", "a", "b")))
    begun = load_start(model, str(saved), PHOTOS, 0)
    assert set(begun.fresh) == CLASS_LAYERS
    kernel, bias = model.learned_layers()["mrcnn_class_logits"].get_weights()
    assert kernel.std() == pytest.approx(0.01, rel=0.3)
    assert not bias.any()


def test_another_backbone_is_refused(saved: Path) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import load_start

    with pytest.raises(ModelFileError, match="does not hold the backbone resnet50"):
        load_start(MaskRCNN(tiny_spec(backbone="resnet50")), str(saved), PHOTOS, 0)


def test_from_nothing_sets_the_statistics_of_the_backbone() -> None:
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import load_start

    model = MaskRCNN(tiny_spec())
    begun = load_start(model, "none", PHOTOS, 0)
    assert begun.loaded == ()
    _, _, mean, variance = model.learned_layers()["stem_bn"].get_weights()
    stem = model.trunk.get_layer("stem_conv")(model.preprocess(np.stack(PHOTOS)) / 128)
    np.testing.assert_allclose(mean, np.mean(stem, axis=(0, 1, 2)), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(variance, np.var(stem, axis=(0, 1, 2)), rtol=1e-2, atol=1e-4)
    layers = model.learned_layers()
    assert not np.array_equal(layers["block15_project_bn"].get_weights()[3], np.ones(320))
    np.testing.assert_array_equal(layers["mrcnn_mask_bn1"].get_weights()[3], np.ones(32))  # heads keep theirs


def test_last_is_the_newest_run(tmp_path: Path) -> None:
    from blu_export.train.start import newest_weights

    with pytest.raises(UsageError, match="no finished run"):
        newest_weights(tmp_path)
    for age, name in enumerate(("a/best.h5", "b/final.h5", "b/best.h5", "c/config.toml")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (age, age))
    assert newest_weights(tmp_path) == tmp_path / "b" / "best.h5"


def test_absent_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blu_export.train.start import weights_file

    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"no weights at absent\.h5"):
        weights_file("absent.h5")
    with pytest.raises(UsageError, match=r"https://.*mask_rcnn_coco\.h5"):
        weights_file("coco")
    assert weights_file("imagenet") is None
