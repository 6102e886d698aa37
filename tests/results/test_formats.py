"""Every format reads back, through a library of that format where there is one."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO

from blu_export import Detections
from blu_export.errors import UsageError
from blu_export.results import FORMATS, SUFFIXES
from blu_export.results.base import Result
from blu_export.results.folder import Stems, open_writer
from blu_export.results.outline import polygons, single_ring

SIZE = (60, 80)
CLASSES = ("BG", "coat", "a/shoe: <b>&")
SHARED = {"rois", "class_ids", "scores", "image_size", "class_names"}


def mask(*boxes: tuple[int, int, int, int], hole: tuple[int, int, int, int] | None = None) -> NDArray[np.bool_]:
    made = np.zeros(SIZE, bool)
    for y1, x1, y2, x2 in boxes:
        made[y1:y2, x1:x2] = True
    if hole is not None:
        made[hole[0] : hole[2], hole[1] : hole[3]] = False
    return made


@pytest.fixture
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


@pytest.fixture
def found(image: NDArray[np.uint8]) -> Detections:
    """A coat in two parts, one with a hole, and a shoe that covers a part of it."""
    masks = [mask((10, 10, 40, 50), (45, 20, 55, 30), hole=(15, 20, 25, 30)), mask((30, 30, 58, 79))]
    rois = np.array([[10, 10, 55, 50], [30, 30, 58, 79]])
    made = Detections.from_dict(
        {"rois": rois, "class_ids": [1, 2], "scores": [0.9, 0.25], "masks": np.stack(masks, axis=-1)}, CLASSES
    )
    return Detections(
        made.rois, made.class_ids, made.scores, made.crops, SIZE, CLASSES, None, lambda: image, "in/street 1.jpg"
    )


def same(a: Detections, b: Detections) -> bool:
    return (
        np.array_equal(a.rois, b.rois)
        and np.array_equal(a.class_ids, b.class_ids)
        and np.array_equal(a.scores, b.scores)
        and np.array_equal(a.masks, b.masks)
        and (a.image_size, a.class_names) == (b.image_size, b.class_names)
    )


@pytest.mark.parametrize("name", ["found.json", "found.npz", "FOUND.JSON"])
def test_what_load_reads(found: Detections, tmp_path: Path, name: str) -> None:
    assert found.save(tmp_path / name) == [tmp_path / name]
    assert same(Detections.load(tmp_path / name), found)
    tracked = found.with_tracks([7, -1])
    tracked.save(tmp_path / name)
    assert Detections.load(tmp_path / name).track_ids.tolist() == [7, -1]


def test_npz_holds_the_dict_of_the_original(found: Detections, tmp_path: Path) -> None:
    found.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as file:
        assert set(file) == SHARED | {"masks"}
        for name, expected in found.to_dict().items():
            assert file[name].dtype == expected.dtype
            np.testing.assert_array_equal(file[name], expected)


def test_npz_masks_are_written_in_blocks(found: Detections, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blu_export.results.npz.BLOCK_BYTES", 7 * SIZE[1] * len(found))
    found.save(tmp_path / "a.npz")
    assert same(Detections.load(tmp_path / "a.npz"), found)


def test_coco(found: Detections, tmp_path: Path) -> None:
    found.save(tmp_path / "a.coco.json")
    coco = COCO(str(tmp_path / "a.coco.json"))
    assert coco.loadImgs([1])[0]["file_name"] == "in/street 1.jpg"
    for index, annotation in enumerate(coco.loadAnns(coco.getAnnIds(imgIds=[1]))):
        assert annotation["category_id"] == found.class_ids[index]
        np.testing.assert_array_equal(coco.annToMask(annotation), found.masks[..., index])


def test_csv(found: Detections, tmp_path: Path) -> None:
    found.with_tracks([3, -1]).save(tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["class"] for line in lines] == list(CLASSES[1:])
    assert lines[0] == {
        "image": "in/street 1.jpg", "frame": "", "instance": "1", "track": "3", "class_id": "1", "class": "coat",
        "score": "0.900000", "x": "10", "y": "10", "width": "40", "height": "45", "area": str(found.areas[0]),
    }  # fmt: skip


def test_mask(found: Detections, tmp_path: Path) -> None:
    files = found.save(tmp_path / "a.mask.png")
    assert [file.name for file in files] == ["a.mask.png", "a.mask.1.coat.png", "a.mask.2.a-shoe---b--.png"]
    numbers = np.asarray(Image.open(files[0]))
    expected = np.zeros(SIZE, int)
    for index in (1, 0):  # the better score is on top
        expected[found.masks[..., index]] = index + 1
    np.testing.assert_array_equal(numbers, expected)
    for index, file in enumerate(files[1:]):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), 255 * found.masks[..., index].astype(np.uint8))


def test_a_mask_of_more_instances_than_a_byte_counts(tmp_path: Path) -> None:
    count = 300
    rois = np.array([[0, x, 1, x + 1] for x in range(count)])
    crops = tuple(np.ones((1, 1), bool) for _ in range(count))
    Detections(rois, np.ones(count), np.ones(count), crops, (2, count), CLASSES).save(tmp_path / "a.mask.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.mask.png"))[0], np.arange(1, count + 1))


def test_crops_and_cut_outs(found: Detections, image: NDArray[np.uint8], tmp_path: Path) -> None:
    crops = found.save(tmp_path / "a.crop.jpg")
    assert [file.name for file in crops] == ["a.crop.1.coat.jpg", "a.crop.2.a-shoe---b--.jpg"]
    with Image.open(crops[0]) as picture:
        assert picture.size == (40, 45)
    together, coat, _ = found.save(tmp_path / "a.cutout.png")
    for file, pixels, seen in (
        (together, image, found.masks.any(axis=-1)),
        (coat, image[10:55, 10:50], found.crops[0]),
    ):
        cut = np.asarray(Image.open(file))
        assert cut.shape[-1] == 4
        np.testing.assert_array_equal(cut[..., 3], 255 * seen.astype(np.uint8))
        np.testing.assert_array_equal(cut[seen][:, :3], pixels[seen])


def test_geojson(found: Detections, tmp_path: Path) -> None:
    shapely = pytest.importorskip("shapely")
    found.save(tmp_path / "a.geojson")
    collection = json.loads((tmp_path / "a.geojson").read_text())
    shapes = [shapely.from_geojson(json.dumps(feature["geometry"])) for feature in collection["features"]]
    assert [shape.geom_type for shape in shapes] == ["MultiPolygon", "Polygon"]
    assert [shape.area for shape in shapes] == found.areas.tolist()
    assert all(shape.is_valid for shape in shapes)
    assert collection["features"][1]["properties"] == {
        "instance": 2, "class": CLASSES[2], "class_id": 2, "score": 0.25,
    }  # fmt: skip
    rows, columns = np.indices(SIZE) + 0.5  # the middle of each pixel
    np.testing.assert_array_equal(shapely.contains_xy(shapes[0], columns, rows), found.masks[..., 0])


def fill(points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """The pixels whose middle is inside of an outline by the even-odd rule."""
    rows, columns = np.indices(SIZE) + 0.5
    crossings = np.zeros(SIZE, int)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            spans = (rows > min(y1, y2)) & (rows < max(y1, y2))
            crossings += spans & (columns < x1 + (rows - y1) * (x2 - x1) / (y2 - y1))
    return crossings % 2 == 1


def test_yolo(found: Detections, tmp_path: Path) -> None:
    with open_writer("yolo", tmp_path / "labels", CLASSES) as writer:
        writer.write("street", Result(found, "street.jpg"))
    lines = [line.split() for line in (tmp_path / "labels" / "street.txt").read_text().splitlines()]
    assert [line[0] for line in lines] == ["0", "1"]
    for index, line in enumerate(lines):
        points = np.array(line[1:], float).reshape(-1, 2) * [SIZE[1], SIZE[0]]
        np.testing.assert_array_equal(fill(points.round(3)), found.masks[..., index])


def test_yolo_through_supervision(found: Detections, image: NDArray[np.uint8], tmp_path: Path) -> None:
    sv = pytest.importorskip("supervision")
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "street.png")
    with open_writer("yolo", tmp_path / "labels", CLASSES) as writer:
        writer.write("street", Result(found, "street.png"))
    read = sv.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "labels" / "data.yaml"), force_masks=True
    )
    assert read.classes == list(CLASSES[1:])
    (given,) = read.annotations.values()
    assert given.class_id.tolist() == [0, 1]
    for index in range(2):
        union = np.count_nonzero(given.mask[index] | found.masks[..., index])
        assert np.count_nonzero(given.mask[index] & found.masks[..., index]) / union > 0.85


def test_labelme(found: Detections, tmp_path: Path) -> None:
    found.save(tmp_path / "a.labelme.json")
    record = json.loads((tmp_path / "a.labelme.json").read_text())
    assert (record["imagePath"], record["imageHeight"], record["imageWidth"]) == ("street 1.jpg", *SIZE)
    assert [(shape["label"], shape["group_id"]) for shape in record["shapes"]] == [
        ("coat", 1), ("coat", 1), (CLASSES[2], 2),
    ]  # fmt: skip
    parts = [fill(np.array(shape["points"])) for shape in record["shapes"]]
    np.testing.assert_array_equal(parts[0] | parts[1], found.masks[..., 0])
    np.testing.assert_array_equal(parts[2], found.masks[..., 1])


def test_voc(found: Detections, tmp_path: Path) -> None:
    found.save(tmp_path / "a.xml")
    root = ElementTree.parse(tmp_path / "a.xml").getroot()
    assert [root.findtext("filename"), root.findtext("size/width"), root.findtext("size/height")] == [
        "street 1.jpg", "80", "60",
    ]  # fmt: skip
    things = root.findall("object")
    assert [thing.findtext("name") for thing in things] == list(CLASSES[1:])
    edges = [int(things[0].findtext(f"bndbox/{name}") or 0) for name in ("xmin", "ymin", "xmax", "ymax")]
    assert edges == [11, 11, 50, 55]  # the first and the last pixel, counted from 1


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a.overlay.jpg", "JPEG")])
def test_overlay(found: Detections, image: NDArray[np.uint8], tmp_path: Path, name: str, kind: str) -> None:
    assert found.save(tmp_path / name) == [tmp_path / name]
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.size) == (kind, (80, 60))
        assert (np.asarray(picture) != image).any()


def test_an_unknown_suffix(found: Detections, tmp_path: Path) -> None:
    for name in ("a.bin", "a", "npz", "a.npz.zip"):
        with pytest.raises(UsageError, match=r"Suffixes are \.jpg"):
            found.save(tmp_path / name)
    with pytest.raises(UsageError, match="Formats are overlay, json"):
        found.save(tmp_path / "a.json", "jsn")
    assert not list(tmp_path.iterdir())
    found.save(tmp_path / "a.bin", "csv")
    assert (tmp_path / "a.bin").read_text().startswith("image,")


def test_formats_that_need_the_photo_say_so(found: Detections, image: NDArray[np.uint8], tmp_path: Path) -> None:
    alone = Detections(found.rois, found.class_ids, found.scores, found.crops, SIZE, CLASSES)
    for suffix in (".jpg", ".crop.jpg", ".cutout.png"):
        with pytest.raises(UsageError, match="do not know their photo"):
            alone.save(tmp_path / f"a{suffix}")
        assert alone.save(tmp_path / f"a{suffix}", image=image)
    for suffix in set(SUFFIXES) - {".jpg", ".jpeg", ".png", ".crop.jpg", ".cutout.png"}:
        assert alone.save(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_found(name: str, image: NDArray[np.uint8], tmp_path: Path) -> None:
    with open_writer(name, tmp_path, CLASSES) as writer:
        writer.write("a", Result(Detections.empty(SIZE, CLASSES), "a.jpg", image=image))
    assert all(path.is_file() for path in writer.written)
    assert bool(writer.written) is (name != "crop")


@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_outlines_have_the_area_of_their_mask(crop: NDArray[np.bool_]) -> None:
    parts = polygons(crop, [3, 5, 3 + crop.shape[0], 5 + crop.shape[1]])
    rings = [ring for part in parts for ring in part]

    def area(ring: NDArray[np.int64]) -> float:
        x, y = ring.T
        return abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2

    outer = sum(area(part[0]) for part in parts)
    holes = sum(area(ring) for part in parts for ring in part[1:])
    assert outer - holes == np.count_nonzero(crop)
    if rings:
        padded = np.zeros(SIZE, bool)
        padded[3 : 3 + crop.shape[0], 5 : 5 + crop.shape[1]] = crop
        np.testing.assert_array_equal(fill(single_ring(parts).astype(float)), padded)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_outline_of_a_box_has_four_corners(height: int, width: int) -> None:
    ((ring,),) = polygons(np.ones((height, width), bool), [2, 3, 2 + height, 3 + width])
    assert sorted(ring.tolist()) == sorted([[x, y] for x in (3, 3 + width) for y in (2, 2 + height)])


def test_stems_do_not_collide() -> None:
    stems = Stems()
    names = [stems.of(name) for name in ("a/x.png", "b/x.png", "b/X.bmp", "b/x-2.png", "", "ü" * 300 + ".jpg")]
    assert len({name.casefold() for name in names}) == len(names)
    assert max(len(name.encode()) for name in names) <= 200
    assert stems.of("v.mp4 frame 1", Path("v.mp4")) == stems.of("v.mp4 frame 2", Path("v.mp4")) == "v"


def test_frames_become_a_video_and_numbered_files(found: Detections, image: NDArray[np.uint8], tmp_path: Path) -> None:
    with open_writer("overlay", tmp_path, CLASSES) as pictures, open_writer("yolo", tmp_path, CLASSES) as labels:
        for frame in (1, 2, 3):
            result = Result(found, "v.mp4", frame, image)
            pictures.write("v", result, 25.0)
            labels.write("v", result, 25.0)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["data.yaml", "v.000001.txt", "v.000002.txt", "v.000003.txt", "v.overlay.mp4"]
    capture = cv2.VideoCapture(str(tmp_path / "v.overlay.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == 3
    capture.release()
