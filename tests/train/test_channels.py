"""Training on photos of other channels than RGB."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from shapes import shapes, tiny_spec, write_coco

from blu_export.cli.main import main
from blu_export.data.augment import AugmentConfig, Photo, jitter_color, place
from blu_export.data.formats.coco import load_coco
from blu_export.data.photos import load_photo
from blu_export.errors import DatasetError, ModelFileError
from blu_export.model.weights import read_weights, save_weights


def write_channels(folder: Path, channels: int) -> Path:
    """The shapes as a COCO file with gray or RGBA photos."""
    path = write_coco(shapes(4), folder)
    for photo in (folder / "images").iterdir():
        color = cv2.imread(str(photo))
        code = cv2.COLOR_BGR2GRAY if channels == 1 else cv2.COLOR_BGR2BGRA
        cv2.imwrite(str(photo), cv2.cvtColor(color, code))
    return path


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.long)])
def test_two_steps_and_a_validation(tmp_path: Path, channels: int, eager: None) -> None:
    data = write_channels(tmp_path / "data", channels)
    settings = {
        "model.backbone": "efficientnet_lite0",
        "model.image_min_dim": 128,
        "model.image_max_dim": 128,
        "model.image_channel_count": channels,
        "model.mean_pixel": [100] * channels,
        "train.epochs": 1,
        "train.steps_per_epoch": 2,
        "train.batch": 2,
        "train.workers": 1,
        "train.targets.proposals": 50,
        "train.targets.rois_per_image": 24,
        "model.top_down_pyramid_size": 32,
        "model.rpn_channels": 32,
        "model.mask_channels": 32,
        "model.fpn_classif_fc_layers_size": 64,
    }
    sets = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", str(data), "--val", str(data), "--weights", "none", "--out", str(run), *sets])
    assert not end.value.code
    trained = read_weights(run / "final.h5")
    assert trained.spec.image_channel_count == channels
    assert trained.layers["stem_conv"][0][1].shape[2] == channels
    history = (run / "history.csv").read_text().splitlines()
    assert len(history) == 2 and np.isfinite(float(history[1].split(",")[history[0].split(",").index("loss")]))


def test_photos_of_other_channels_are_refused(tmp_path: Path) -> None:
    dataset = load_coco(write_channels(tmp_path, 4))
    assert dataset.load_image(0).shape[2] == 3
    assert dataset.with_channels(4).load_image(0).shape[2] == 4
    with pytest.raises(DatasetError, match="has 4 channels, and the model takes 2"):
        dataset.with_channels(2).load_image(0)


def test_a_photo_is_shrunk_with_all_its_channels(tmp_path: Path) -> None:
    dataset = load_coco(write_channels(tmp_path, 1)).with_channels(1)
    photo = load_photo(dataset, 0, 64)
    assert photo.image.shape == (64, 64, 1)


@pytest.mark.parametrize("channels", [1, 2, 4, 8])
def test_each_channel_is_moved_and_colored_by_itself(channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, channels), np.uint8)
    none: NDArray[np.int32] = np.zeros(0, np.int32)
    photo = Photo(image, none, none.astype(bool), (), ())
    affine = np.array([[0.5, 0.1, 1], [0, 0.5, 2.0]])
    moved = place(photo, affine, (12, 16)).image
    for channel in range(channels):
        alone = cv2.warpAffine(image[..., channel].copy(), affine, (16, 12))
        np.testing.assert_allclose(moved[..., channel], alone, atol=4)  # another path, with other rounding
    config = AugmentConfig(brightness=0.0, tint=0.5)
    colored = jitter_color(image, config, np.random.default_rng(1))
    assert colored.shape == image.shape
    gains = [np.median(colored[..., each] / np.maximum(image[..., each], 1.0)) for each in range(channels)]
    assert len({round(gain, 2) for gain in gains}) == channels


@pytest.mark.parametrize("channels", [1, 4])
def test_the_first_layer_of_rgb_weights_is_fitted(tmp_path: Path, channels: int) -> None:
    from blu_export.model.mask_rcnn import MaskRCNN
    from blu_export.train.start import load_start

    rgb = MaskRCNN(tiny_spec())
    save_weights(rgb, tmp_path / "rgb.h5")
    changes = {"image_channel_count": channels, "mean_pixel": (127.0,) * channels}
    model = MaskRCNN(tiny_spec(**changes))
    begun = load_start(model, str(tmp_path / "rgb.h5"), [], 0)
    assert not begun.fresh and f"stem_conv takes {channels} channel" in begun.note
    gray = np.random.default_rng(0).integers(0, 256, (1, 128, 128, 1), np.uint8)
    as_rgb, as_other = np.repeat(gray, 3, axis=3), np.repeat(gray, channels, axis=3)
    for expected, got in zip(rgb.trunk(rgb.preprocess(as_rgb)), model.trunk(model.preprocess(as_other)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    save_weights(model, tmp_path / "other.h5")
    with pytest.raises(ModelFileError, match=f"takes {channels} channels, and the model 3"):
        load_start(rgb, str(tmp_path / "other.h5"), [], 0)


def test_the_mean_of_other_channels_must_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_channels(tmp_path / "data", 1)
    with pytest.raises(SystemExit) as end:
        main(["train", "--dataset", str(data), "--set", "model.image_channel_count=1", "--out", str(tmp_path / "run")])
    assert end.value.code == 2
    assert "--set 'model.mean_pixel=[120]'" in capsys.readouterr().err
