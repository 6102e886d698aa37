"""Images of other channels than RGB, for models that were trained on them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from blu_export.draw import shown
from blu_export.errors import ImageError, UsageError
from blu_export.image import decode, mold
from blu_export.model.given import Given
from blu_export.spec import ModelSpec

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 8), np.uint8)


def spec(channels: int) -> ModelSpec:
    sizes = {"image_min_dim": 64, "image_max_dim": 64}
    return ModelSpec(("BG", "a"), image_channel_count=channels, mean_pixel=(7.0,) * channels, **sizes)


def encoded(channels: int, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS[..., :channels].squeeze()).save(file, form)
    return file.getvalue()


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 8])
def test_each_channel_is_molded_as_one_of_a_color_photo(channels: int) -> None:
    image = decode(PIXELS[..., :channels], channels=channels)
    canvas = mold(image, spec(channels)).canvas
    for channel in range(channels):
        alone = np.repeat(PIXELS[..., channel : channel + 1], 3, axis=2)
        assert np.array_equal(canvas[..., channel], mold(alone, spec(3)).canvas[..., 0])
    assert shown(image).shape == (40, 60, 3)


@pytest.mark.parametrize(("channels", "form"), [(1, "PNG"), (2, "PNG"), (4, "PNG"), (4, "TIFF"), (1, "TIFF")])
def test_files_keep_their_channels(channels: int, form: str) -> None:
    found = decode(encoded(channels, form), channels=channels)
    assert np.array_equal(found, PIXELS[..., :channels])


def test_gray_arrays_need_no_axis_of_channels() -> None:
    assert decode(PIXELS[..., 0], channels=1).shape == (40, 60, 1)


@pytest.mark.parametrize(("found", "wanted"), [(3, 4), (4, 1), (3, 1), (1, 4)])
def test_other_channels_than_the_models_are_a_clear_error(found: int, wanted: int) -> None:
    for source in (encoded(found, "PNG"), PIXELS[..., :found]):
        with pytest.raises(ImageError, match=f"has {found} channels?, and the model takes {wanted}"):
            decode(source, channels=wanted)


def test_people_are_shown_the_first_three_or_gray() -> None:
    assert np.array_equal(shown(PIXELS), PIXELS[..., :3])
    assert np.array_equal(shown(PIXELS[..., :2])[..., 2], PIXELS[..., 0])


def test_the_mean_of_other_channels_is_not_guessed() -> None:
    read = {"image_channel_count": 4}
    with pytest.raises(UsageError, match="take 4 channels"):
        Given().spec(read, 2)
    assert Given(settings=("MEAN_PIXEL=1,2,3,4",)).spec(read, 2).mean_pixel == (1, 2, 3, 4)
    with pytest.raises(UsageError, match="mean_pixel needs a value for each of the 4 channels"):
        Given(settings=("MEAN_PIXEL=1,2,3",)).spec(read, 2)
