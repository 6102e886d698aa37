"""Scenes: persons on backgrounds, and photos with nothing to find."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from blu_export.data.augment import AugmentConfig, Canvas
from blu_export.data.dataset import CUTOUT, Annotation, Dataset, Record
from blu_export.data.load import load_cutouts
from blu_export.data.pipeline import SampleConfig, SampleMaker
from blu_export.data.scenes import paste_person, person_affine
from blu_export.errors import DatasetError, UsageError
from blu_export.rle import encode_rle
from blu_export.spec import ModelSpec

SPEC = ModelSpec(class_names=("BG", "coat"), image_min_dim=128, image_max_dim=128)
STILL = AugmentConfig(flip=0, scale=(1, 1), brightness=0, tint=0, copy_paste=0)
PERSON = (20, 40, 80, 60)
COAT = [[40, 40, 60, 40, 60, 60, 40, 60]]


@dataclass(frozen=True)
class Filled(Dataset):
    """Photos of one value each, their objects and cut-outs white."""

    value: int = 0

    def load_image(self, index: int) -> NDArray[np.uint8]:
        record = self.records[index]
        image = np.full((record.height, record.width, 3), self.value, np.uint8)
        image[self.load_masks(index).any(axis=0)] = 255
        return image


def cutout(name: str = "a.png") -> dict[str, object]:
    y1, x1, y2, x2 = PERSON
    return {name: encode_rle(np.ones((y2 - y1, x2 - x1), bool), PERSON, (128, 128))}


def street() -> Dataset:
    """A photo with a person in a coat, and one of no one with a coat."""
    coat = Annotation(1, (40, 40, 60, 60), COAT)
    records = (Record(1, "x/a.png", 128, 128, (coat,)), Record(2, "x/b.png", 128, 128, (coat,)))
    return Filled(SPEC.class_names, records, value=90).with_cutouts(cutout())  # type: ignore[arg-type]


def nowhere(crowd: bool = False) -> Dataset:
    """A gray photo; with a crowd in its left half, if wanted."""
    crowds = (Annotation(1, (0, 0, 128, 50), [[0, 0, 50, 0, 50, 128, 0, 128]], iscrowd=True),)
    return Filled(SPEC.class_names, (Record(1, "y/c.png", 128, 128, crowds if crowd else ()),), value=30)


def maker(backgrounds: Dataset | None, dataset: Dataset | None = None, **augment: float) -> SampleMaker:
    config = SampleConfig((128, 128), max_gt_instances=9, augment=AugmentConfig(**vars(STILL) | augment))
    return SampleMaker(dataset or street(), SPEC, config, lambda boxes, ids, rng: {}, backgrounds)


def test_cutouts_belong_to_photos_by_name_and_are_no_objects() -> None:
    assert street().cutouts() == [0]
    make = maker(None)
    for number in range(2):
        assert make(number)["gt_class_ids"].tolist() == [1] + [0] * 8


def test_empty_photos_have_only_crowds() -> None:
    sample = maker(nowhere(), empty=1.0)(0)
    assert not sample["gt_class_ids"].any()
    assert (sample["image"] == 30).all()
    assert maker(nowhere(crowd=True), empty=1.0)(0)["gt_class_ids"].tolist() == [-1] + [0] * 8


def test_scenes_show_persons_without_their_photo() -> None:
    make = maker(nowhere(), scenes=1.0)
    worn = 0
    for number in range(20):
        sample = make(number)
        image = sample["image"][..., 0]
        assert not (np.abs(image.astype(int) - 90) < 5).mean() > 0.05  # the photo's own background, but for soft edges
        for class_id, (y1, x1, y2, x2) in zip(sample["gt_class_ids"], sample["gt_boxes"] * 127, strict=True):
            if class_id:
                worn += 1
                assert image[int((y1 + y2) / 2), int((x1 + x2) / 2)] == 255
    assert worn > 10


def test_shares_are_those_asked_for() -> None:
    make = maker(nowhere(), scenes=0.25, empty=0.25)
    kinds = [make(number) for number in range(400)]
    empty = sum(bool((sample["image"] == 30).all()) for sample in kinds)
    street_photos = sum(bool((sample["image"] == 90).mean() > 0.5) for sample in kinds)
    assert 70 <= empty <= 150  # a few of the scenes show no one
    assert 160 <= street_photos <= 240


@given(
    seed=st.integers(0, 10_000),
    low=st.floats(0.2, 3.0),
    more=st.floats(0.0, 2.0),
    canvas=st.sampled_from([(128, 192), (256, 64)]),
)
def test_persons_have_the_height_asked_for_and_are_in_the_frame(
    seed: int, low: float, more: float, canvas: tuple[int, int]
) -> None:
    config = AugmentConfig(person=(low, low + more))
    affine = person_affine(PERSON, canvas, config, np.random.default_rng(seed))
    y1, x1, y2, x2 = PERSON
    corners = affine[:, :2] @ np.array([[x1, x2], [y1, y2]]) + affine[:, 2:]
    (left, right), (top, bottom) = np.sort(corners[0]), corners[1]
    height = bottom - top
    assert low * 0.999 <= height / canvas[0] <= (low + more) * 1.001
    assert left < canvas[1] and right > 0
    shown = min(bottom, canvas[0]) - max(top, 0)
    assert shown > 0.5 * min(height, canvas[0])


def test_a_pasted_person_hides_what_is_below_and_wears_only_what_shows() -> None:
    crowd = np.zeros((1, 60, 60), bool)
    crowd[0, :, :30] = True
    below = Canvas(np.zeros((60, 60, 3), np.uint8), crowd, np.array([1], np.int32), np.array([True]))
    masks = np.zeros((3, 60, 60), bool)
    masks[0, 10:50, 10:50] = True  # the person
    masks[1, 20:30, 5:20] = True  # reaches beyond it
    masks[2, 0:9] = True  # outside
    above = Canvas(np.full((60, 60, 3), 200, np.uint8), masks, np.array([CUTOUT, 1, 1], np.int32), np.zeros(3, bool))

    class Whole:
        """Draws that never shorten."""

        def random(self) -> float:
            return 1.0

        def uniform(self, low: float, high: float) -> float:
            return low

    pasted = paste_person(below, above, Whole())  # type: ignore[arg-type]
    assert pasted.iscrowd.tolist() == [True, False]
    assert pasted.masks.sum(axis=(1, 2)).tolist() == [60 * 30 - 40 * 20, 10 * 10]
    assert (pasted.image[30, 30] == 200).all() and not pasted.image[30, 55].any()


def test_what_a_scene_needs_is_said() -> None:
    with pytest.raises(UsageError, match="data.backgrounds"):
        maker(None, empty=0.5)
    with pytest.raises(UsageError, match="data.cutouts"):
        maker(nowhere(), Filled(SPEC.class_names, street().records[1:]), scenes=0.5)


def test_sets_are_joined_and_each_reads_its_own() -> None:
    first = Dataset(("BG", "a"), (Record(1, "1", 1, 1, ()),), "first", read=lambda uri: b"first" + uri.encode())
    second = Dataset(("BG", "a"), (Record(1, "2", 1, 1, ()),), "second", read=lambda uri: b"second" + uri.encode())
    both = first.joined(second)
    assert [both.read(record.uri) for record in both.records] == [b"first1", b"second2"]
    with pytest.raises(DatasetError, match="second has other classes"):
        Dataset(("BG", "b"), ()).joined(second)


def test_cutout_files(tmp_path: Path) -> None:
    path = tmp_path / "cutouts.json"
    empty = encode_rle(np.zeros((1, 1), bool), (0, 0, 1, 1), (128, 128))
    path.write_text(json.dumps(cutout() | {"b.png": empty}))
    assert load_cutouts(path) == cutout()
    with pytest.raises(DatasetError, match="No cut-out belongs to a photo of data set"):
        nowhere().with_cutouts(load_cutouts(path))


@pytest.mark.parametrize(
    "text", ["", "[]", '{"a": 3}', '{"a": {"size": [1, 1]}}', '{"a": {"size": [3], "counts": "1"}}']
)
def test_other_files_of_cutouts_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cutouts.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"cutouts\.json"):
        load_cutouts(path)
