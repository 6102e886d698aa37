"""The input pipeline: samples are functions of their number."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from blu_export.data.augment import AugmentConfig
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.data.pipeline import SampleConfig, SampleMaker, batches, repeat_factors
from blu_export.spec import ModelSpec

SPEC = ModelSpec(class_names=("BG", "a", "b"), image_min_dim=128, image_max_dim=128)


class Drawn(Dataset):
    """Gray photos: photo i has pixels of value 20 i."""

    def load_image(self, index: int) -> np.ndarray:
        record = self.records[index]
        return np.full((record.height, record.width, 3), 20 * index, np.uint8)


def drawn(count: int, crowd: bool = False) -> Drawn:
    square = [[20, 10, 60, 10, 60, 40, 20, 40]]
    annotation = Annotation(1, (10, 20, 40, 60), square, iscrowd=crowd)
    return Drawn(SPEC.class_names, tuple(Record(i, f"{i}", 100, 80, (annotation,)) for i in range(count)))


def maker(dataset: Dataset, **changes: object) -> SampleMaker:
    fields: dict[str, object] = {"canvas": (128, 128), "max_gt_instances": 4, "seed": 3}
    config = SampleConfig(**fields | changes)  # type: ignore[arg-type]
    return SampleMaker(
        dataset, SPEC, config, lambda boxes, ids, rng: {"pixels": np.pad(boxes, ((0, 9 - len(boxes)), (0, 0)))}
    )


def test_sample_is_a_function_of_its_number() -> None:
    first, second = maker(drawn(5)), maker(drawn(5))
    for number in (17, 3, 17):
        a, b = first(number), second(number)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    assert (first(3)["image"] != first(4)["image"]).any()
    assert (first(3)["image"] != maker(drawn(5), seed=4)(3)["image"]).any()


def test_boxes_are_those_of_the_masks() -> None:
    off = AugmentConfig(0, (1, 1), 0, 0, 0, 0)
    sample = maker(drawn(1), augment=off)(0)
    scale = 128 / 100
    y1, x1, y2, x2 = sample["pixels"][0]
    assert (y2 - y1, x2 - x1) == (pytest.approx(30 * scale, abs=1), pytest.approx(40 * scale, abs=1))
    np.testing.assert_allclose(sample["gt_boxes"][0], np.array([y1, x1, y2 - 1, x2 - 1]) / 127, atol=1e-6)
    assert sample["gt_class_ids"].tolist() == [1, 0, 0, 0]
    assert sample["gt_masks"][0].all()
    assert not sample["gt_masks"][1:].any()


class Marked(Drawn):
    """Gray photos whose object is red."""

    def load_image(self, index: int) -> np.ndarray:
        image = np.full((100, 80, 3), 128, np.uint8)
        image[10:40, 20:60] = (255, 0, 0)
        return image


def test_augmented_boxes_and_masks_are_where_the_object_is() -> None:
    dataset = Marked(SPEC.class_names, drawn(1).records)
    geometry = AugmentConfig(flip=0.5, scale=(0.5, 1.5), rotation=20, brightness=0, tint=0, copy_paste=0)
    make = maker(dataset, augment=geometry)
    seen = 0
    for number in range(40):
        sample = make(number)
        if not sample["gt_class_ids"][0]:
            continue
        seen += 1
        red = (sample["image"][..., 0].astype(int) - sample["image"][..., 1]) > 127
        ys, xs = red.nonzero()
        box = sample["gt_boxes"][0] * 127 + [0, 0, 1, 1]
        np.testing.assert_allclose(box, [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1], atol=1.5)
        y1, x1, y2, x2 = box.round().astype(int)
        crop = cv2.resize(red[y1:y2, x1:x2].astype(np.float32), (56, 56)) >= 0.5
        assert (crop != sample["gt_masks"][0]).mean() < 0.08
    assert seen > 30


def test_crowds_have_negative_ids() -> None:
    off = AugmentConfig(0, (1, 1), 0, 0, 0, 0)
    assert maker(drawn(1, crowd=True), augment=off)(0)["gt_class_ids"].tolist() == [-1, 0, 0, 0]


@pytest.mark.parametrize(("smallest", "class_id"), [(38 * 51, 1), (39 * 52 + 1, -1)])
def test_objects_too_small_to_tell_are_ignored(smallest: int, class_id: int) -> None:
    augment = AugmentConfig(0, (1, 1), 0, 0, 0, 0, smallest=smallest)  # 30x40 pixels, drawn 1.28 times as large
    assert maker(drawn(1), augment=augment)(0)["gt_class_ids"].tolist() == [class_id, 0, 0, 0]


def test_each_pass_shows_every_photo_once() -> None:
    make = maker(drawn(7))
    orders = [make._shuffled(passes).tolist() for passes in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert orders[0] != orders[1]


def test_rare_classes_are_drawn_more_often() -> None:
    rare = Annotation(2, (0, 0, 9, 9), [[0, 0, 9, 0, 9, 9]])
    dataset = drawn(20)
    records = (*dataset.records[:19], Record(19, "19", 100, 80, (rare,)))
    dataset = Drawn(SPEC.class_names, records)
    factors = repeat_factors(dataset, 0.45)
    assert factors[19] == pytest.approx(3.0)  # sqrt(0.45 / 0.05)
    assert (factors[:19] == 1.0).all()
    make = maker(dataset, balance=0.45)
    orders = np.array([make._shuffled(passes) for passes in range(50)])
    assert orders.shape == (50, 20)
    assert (orders == 19).sum(axis=1).mean() == pytest.approx(3.0 * 20 / 22, abs=0.3)


def test_batches_start_anywhere_and_split_over_workers() -> None:
    make = maker(drawn(5))
    everything = [batch["image"].numpy() for batch in batches(make, 4, 0, 3)]
    later = [batch["image"].numpy() for batch in batches(make, 4, 1, 2)]
    np.testing.assert_array_equal(np.stack(everything[1:]), np.stack(later))
    parts = [[b["image"].numpy() for b in batches(make, 4, 0, 3, workers=2, worker=w)] for w in range(2)]
    joined = [np.concatenate(pair) for pair in zip(*parts, strict=True)]
    np.testing.assert_array_equal(np.stack(everything), np.stack(joined))


def test_each_sample_is_made_once() -> None:
    numbers: list[int] = []
    dataset = drawn(5)

    class Counting(SampleMaker):
        def __call__(self, number: int) -> dict[str, np.ndarray]:
            numbers.append(int(number))
            return super().__call__(number)

    example = maker(dataset)
    data = batches(Counting(dataset, SPEC, example.config, example.encode), 4, 1, 2)
    numbers.clear()  # one was made for its shapes
    assert len(list(data)) == 2
    assert sorted(numbers) == list(range(4, 12))


def test_cache_is_bounded() -> None:
    dataset = drawn(5)
    photo = 100 * 80 * 3 + 30 * 40
    store = maker(dataset, cache_bytes=2 * photo).photos
    for index in range(5):
        assert store[index].image[0, 0, 0] == 20 * index
    assert len(store._photos) == 2
