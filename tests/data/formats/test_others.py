"""Annotations of other tools, written by hand as the tools write them: read with the masks that were meant."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from blu_export.cli.main import main
from blu_export.data.dataset import Dataset, decode_mask
from blu_export.data.load import has_split, load_dataset
from blu_export.errors import DatasetError

HEIGHT, WIDTH = 60, 80
CUP = [10.3, 10.2, 40.0, 12.7, 38.0, 50.75, 12.0, 48.0]
BOX = [50.0, 5.0, 70.0, 5.0, 70.0, 25.0, 50.0, 25.0]
RING = np.zeros((HEIGHT, WIDTH), bool)
RING[30:50, 50:75] = True
RING[35:40, 55:60] = False
"""A mask with a hole."""


def outline(polygon: list[float]) -> NDArray[np.bool_]:
    return decode_mask([polygon], HEIGHT, WIDTH)


MASKS = {"cup": outline(CUP), "box": outline(BOX)}


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def png(values: NDArray[Any], palette: list[int] | None = None) -> bytes:
    image, out = Image.fromarray(values), io.BytesIO()
    if palette is not None:
        image.putpalette(palette)
    image.save(out, "PNG")
    return out.getvalue()


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def via_region(polygon: list[float], name: str) -> dict[str, Any]:
    shape = {"name": "polygon", "all_points_x": polygon[::2], "all_points_y": polygon[1::2]}
    return {"shape_attributes": shape, "region_attributes": {"color": "", "class": name}}


def via_json(root: Path) -> Path:
    photo(root / "a.png")
    photo(root / "b.png")
    entries = {
        "a.png123": {
            "filename": "a.png", "size": 123, "file_attributes": {},
            "regions": [via_region(CUP, "cup"), via_region(BOX, "box")],
        },
        "b.png9": {"filename": "b.png", "size": 9, "regions": []},
    }  # fmt: skip
    return write(root / "via_project.json", {"_via_settings": {}, "_via_img_metadata": entries})


def via_one(root: Path) -> Path:
    """VIA 1: regions by number, annotations alone."""
    photo(root / "a.png")
    regions = {"0": via_region(CUP, "cup"), "1": via_region(BOX, "box")}
    return write(root / "via_region_data.json", {"a.png1": {"filename": "a.png", "size": 1, "regions": regions}})


def via_csv(root: Path) -> Path:
    photo(root / "a.png")
    lines = ["filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes"]
    for number, (polygon, name) in enumerate(((CUP, "cup"), (BOX, "box"))):
        region = via_region(polygon, name)
        cells = [json.dumps(region[key]).replace('"', '""') for key in ("shape_attributes", "region_attributes")]
        lines.append(f'a.png,1,"{{}}",2,{number},"{cells[0]}","{cells[1]}"')
    return write(root / "via.csv", "\n".join(lines))


def labelme(root: Path) -> Path:
    photo(root / "a.png")
    pairs = {
        name: [list(pair) for pair in zip(p[::2], p[1::2], strict=True)] for name, p in (("cup", CUP), ("box", BOX))
    }
    shapes = [
        {"label": name, "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        for name, points in pairs.items()
    ]
    content = {"version": "5.5.0", "shapes": shapes, "imagePath": "..\\x\\a.png", "imageData": None}
    write(root / "a.json", content | {"imageHeight": HEIGHT, "imageWidth": WIDTH})
    return root


def cvat(root: Path) -> Path:
    """A polygon, and a mask as CVAT's run lengths along the rows of its box."""
    photo(root / "images" / "a.png")
    points = ";".join(f"{x},{y}" for x, y in zip(CUP[::2], CUP[1::2], strict=True))
    ys, xs = np.nonzero(MASKS["box"])
    crop = MASKS["box"][ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    edges = np.flatnonzero(np.diff(crop.ravel().astype(int), prepend=0, append=-1))
    runs = ",".join(str(run) for run in np.diff(edges, prepend=0))
    box = f'left="{xs.min()}" top="{ys.min()}" width="{crop.shape[1]}" height="{crop.shape[0]}"'
    shapes = f"""
      <polygon label="cup" source="manual" occluded="0" points="{points}" z_order="0"></polygon>
      <mask label="box" source="manual" occluded="0" rle="{runs}" {box} z_order="0"></mask>
      <points label="cup" points="1.00,2.00"></points>"""
    head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
    element = f'<image id="0" name="a.png" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>'
    write(root / "annotations.xml", f"{head}{element}</annotations>")
    return root


def darwin(root: Path) -> Path:
    photo(root / "images" / "a.png")

    def path(polygon: list[float]) -> list[dict[str, float]]:
        return [{"x": x, "y": y} for x, y in zip(polygon[::2], polygon[1::2], strict=True)]

    annotations = [
        {"id": "1", "name": "cup", "polygon": {"paths": [path(CUP)]}, "bounding_box": {"x": 1, "y": 1, "w": 2, "h": 2}},
        {"id": "2", "name": "box", "polygon": {"paths": [path(BOX)]}, "slot_names": ["0"]},
        {"id": "3", "name": "sunny", "tag": {}},
    ]
    slots = [{"type": "image", "slot_name": "0", "width": WIDTH, "height": HEIGHT}]
    item = {"name": "a.png", "path": "/", "slots": slots}
    write(root / "annotations" / "a.json", {"version": "2.0", "item": item, "annotations": annotations})
    return root


def yolo_lines() -> str:
    lines = []
    for index, polygon in enumerate((CUP, BOX)):
        shares = [value / (HEIGHT if i % 2 else WIDTH) for i, value in enumerate(polygon)]
        lines.append(" ".join([str(index), *(f"{share:.6f}" for share in shares)]))
    return "\n".join(lines)


def yolo_images_first(root: Path) -> Path:
    photo(root / "images" / "train" / "a.png")
    write(root / "labels" / "train" / "a.txt", yolo_lines())
    write(root / "data.yaml", "path: ../x\ntrain: images/train\nnames:\n  0: cup\n  1: box\n")
    return root


def yolo_roboflow(root: Path) -> Path:
    photo(root / "train" / "images" / "a.png")
    write(root / "train" / "labels" / "a.txt", yolo_lines() + "\n\n")
    write(root / "data.yaml", "train: ../train/images\nnc: 2\nnames: ['cup', 'box']\n")
    return root


def yolo_flat(root: Path) -> Path:
    photo(root / "images" / "a.png")
    write(root / "labels" / "a.txt", yolo_lines())
    write(root / "classes.txt", "cup\nbox\n")
    return root


def voc(root: Path) -> Path:
    photo(root / "JPEGImages" / "a.png")
    objects = np.zeros((HEIGHT, WIDTH), np.uint8)
    objects[MASKS["cup"]], objects[MASKS["box"]], objects[0, 0] = 1, 2, 255
    gray = [value for index in range(256) for value in (index, index, 0)]
    write(root / "SegmentationObject" / "a.png", png(objects, gray))
    xml = "".join(f"<object><name>{name}</name></object>" for name in ("cup", "box"))
    write(root / "Annotations" / "a.xml", f"<annotation>{xml}</annotation>")
    write(root / "ImageSets" / "Segmentation" / "train.txt", "a\n")
    return root


def voc_cvat(root: Path) -> Path:
    """Colors of labelmap.txt."""
    photo(root / "JPEGImages" / "a.png")
    objects, classes = np.zeros((HEIGHT, WIDTH, 3), np.uint8), np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors = {"cup": (250, 50, 83), "box": (51, 221, 255)}
    for number, (name, mask) in enumerate(MASKS.items(), start=1):
        objects[mask], classes[mask] = (128 * (number % 2), 128 * (number // 2), 0), colors[name]
    write(root / "SegmentationObject" / "a.png", png(objects))
    write(root / "SegmentationClass" / "a.png", png(classes))
    labels = "".join(f"{name}:{r},{g},{b}::\n" for name, (r, g, b) in colors.items())
    write(root / "labelmap.txt", f"# label:color_rgb:parts:actions\nbackground:0,0,0::\n{labels}")
    return root


def one_png_an_object(root: Path) -> Path:
    photo(root / "images" / "a.jpg")
    for name, mask in MASKS.items():
        write(root / "masks" / "a" / f"{name}_1.png", png(mask.astype(np.uint8) * 255))
    write(root / "masks" / "a" / "cup_2.png", png(np.zeros((HEIGHT, WIDTH), np.uint8)))
    return root


TOOLS: list[Callable[[Path], Path]] = [
    cvat, darwin,
    via_json, via_one, via_csv, labelme, yolo_images_first, yolo_roboflow, yolo_flat, voc, voc_cvat, one_png_an_object,
]  # fmt: skip


def masks_by_class(dataset: Dataset) -> dict[str, NDArray[np.bool_]]:
    index = next(i for i, record in enumerate(dataset.records) if Path(record.uri).stem == "a")
    assert dataset.load_image(index).shape == (HEIGHT, WIDTH, 3)
    names = [dataset.class_names[annotation.category] for annotation in dataset.records[index].annotations]
    return dict(zip(names, dataset.load_masks(index), strict=True))


def require_equal(found: dict[str, NDArray[np.bool_]], exact: bool) -> None:
    assert found.keys() == MASKS.keys()
    for name, mask in MASKS.items():
        shared = (found[name] & mask).sum() / (found[name] | mask).sum()
        assert shared == 1 if exact else shared >= 0.999, (name, shared)


def convert(source: Path, out: Path, *options: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["data", "convert", str(source), str(out), *options])
    assert not end.value.code


@pytest.mark.parametrize("tool", TOOLS)
def test_masks_survive_reading_and_converting(tmp_path: Path, tool: Callable[[Path], Path]) -> None:
    source = tool(tmp_path / "source")
    dataset = load_dataset(source, "train")
    assert dataset.problems == ()
    exact = tool in (voc, voc_cvat, one_png_an_object)
    require_equal(masks_by_class(dataset), exact)
    convert(source, tmp_path / "coco")
    require_equal(masks_by_class(load_dataset(tmp_path / "coco", "train")), exact)
    convert(tmp_path / "coco", tmp_path / "yolo", "--to", "yolo", "--photos", "link")
    require_equal(masks_by_class(load_dataset(tmp_path / "yolo", "train")), exact=False)


def test_a_hole_and_parts_survive_yolo(tmp_path: Path) -> None:
    photo(tmp_path / "set" / "images" / "a.jpg")
    mask = RING.copy()
    mask[2:6, 3:9] = True
    write(tmp_path / "set" / "masks" / "a" / "ring_1.png", png(mask))
    convert(tmp_path / "set", tmp_path / "yolo", "--to", "yolo")
    np.testing.assert_array_equal(masks_by_class(load_dataset(tmp_path / "yolo", "train"))["ring"], mask)


def test_a_path_inside_another_is_a_hole_of_darwin(tmp_path: Path) -> None:
    root = darwin(tmp_path)
    file = root / "annotations" / "a.json"
    content = json.loads(file.read_text())
    hole = [{"x": x, "y": y} for x, y in ((55, 10), (60, 10), (60, 15), (55, 15))]
    content["annotations"][1]["polygon"]["paths"].append(hole)
    content["annotations"].append({"name": "cup", "polygon": {"paths": "no"}})
    write(file, content)
    dataset = load_dataset(root, "train")
    expected = MASKS["box"] & ~outline([55, 10, 60, 10, 60, 15, 55, 15])
    assert np.array_equal(dataset.load_masks(0)[1], expected) and expected.sum() < MASKS["box"].sum()
    assert len(dataset.records[0].annotations) == 2 and len(dataset.problems) == 1


@pytest.mark.parametrize("attributes", ['rle="1,2"', 'rle="x"', 'rle="9,1" width="0"'])
def test_a_mask_of_cvat_that_cannot_be_costs_itself(tmp_path: Path, attributes: str) -> None:
    root = cvat(tmp_path)
    file = root / "annotations.xml"
    broken = f'<mask label="box" left="1" top="1" width="5" height="2" {attributes}></mask></image>'
    if 'width="0"' in attributes:
        broken = broken.replace('width="5" ', "")
    write(file, file.read_text().replace("</image>", broken))
    dataset = load_dataset(root, "train")
    assert len(dataset.records[0].annotations) == 2 and len(dataset.problems) == 1


def test_a_color_for_each_object(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "a.jpg")
    colors = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colors[MASKS["cup"]], colors[MASKS["box"]] = (255, 0, 0), (0, 7, 0)
    write(tmp_path / "masks" / "a.png", png(colors))
    photo(tmp_path / "images" / "nothing.jpg")
    dataset = load_dataset(tmp_path, "train")
    assert (dataset.class_names, [len(r.annotations) for r in dataset.records]) == (("BG", "object"), [2, 0])
    np.testing.assert_array_equal(dataset.load_masks(0), [MASKS["box"], MASKS["cup"]])


def test_a_folder_for_each_photo(tmp_path: Path) -> None:
    for name in ("a", "b"):
        photo(tmp_path / name / "images" / f"{name}.png")
        write(tmp_path / name / "masks" / f"{3 * name}0123456789.png", png(MASKS["cup"].astype(np.uint8)))
    dataset = load_dataset(tmp_path, "train")
    assert [len(record.annotations) for record in dataset.records] == [1, 1]
    assert dataset.class_names == ("BG", "object")


def test_shapes_of_via_and_labelme(tmp_path: Path) -> None:
    ys, xs = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    circle = np.hypot(xs - 40, ys - 30) < 20
    photo(tmp_path / "via" / "a.png")
    shapes = [
        {"name": "circle", "cx": 40, "cy": 30, "r": 20},
        {"name": "ellipse", "cx": 40, "cy": 30, "rx": 30, "ry": 10, "theta": math.pi / 2},
        {"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"kind": {"ball": True}}} for shape in shapes]
    write(tmp_path / "via" / "x.json", {"a.png1": {"filename": "a.png", "regions": regions}})
    dataset = load_dataset(tmp_path / "via", "train")
    masks = dataset.load_masks(0)
    assert dataset.class_names == ("BG", "ball")
    assert (masks[0] ^ circle).sum() < 0.02 * circle.sum()
    assert masks[1].any(axis=1).sum() > 2.5 * masks[1].any(axis=0).sum()  # stands upright
    assert dataset.records[0].annotations[2].box == (2, 1, 6, 4)
    assert [problem.kind for problem in dataset.problems] == ["no mask"]

    photo(tmp_path / "labelme" / "a.png")
    crop = base64.b64encode(png(RING[30:50, 50:75])).decode()
    shapes = [
        {"label": "ball", "shape_type": "circle", "points": [[40, 30], [60, 30]]},
        {"label": "ring", "shape_type": "mask", "points": [[50, 30], [74, 49]], "mask": crop},
        {"label": "pair", "group_id": 1, "points": [[0, 0], [5, 0], [5, 5], [0, 5]]},
        {"label": "pair", "group_id": 1, "points": [[10, 0], [15, 0], [15, 5], [10, 5]]},
        {"label": "spot", "shape_type": "point", "points": [[1, 1]]},
        {"label": "broken", "points": "none"},
    ]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH}
    write(tmp_path / "labelme" / "a.json", {"flags": {}, "shapes": shapes, "imagePath": "a.png", **size})
    write(tmp_path / "labelme" / "b.json", '{"shapes": [')
    dataset = load_dataset(tmp_path / "labelme", "train")
    assert dataset.class_names == ("BG", "ball", "ring", "pair")
    masks = dataset.load_masks(0)
    assert (masks[0] ^ circle).sum() < 0.02 * circle.sum()
    np.testing.assert_array_equal(masks[1], RING)
    assert masks[2].sum() == 50
    assert [problem.kind for problem in dataset.problems] == ["broken record", "broken record"]


def test_parts_and_bad_lines_of_yolo(tmp_path: Path) -> None:
    for part in ("train", "valid"):
        photo(tmp_path / part / "images" / "a.png")
        write(tmp_path / part / "labels" / "a.txt", yolo_lines() + "\n0 0.5 0.5 0.1 0.1\n1 0.5\nzero\n7 0 0 1 0 1 1\n")
    assert has_split(tmp_path, "val")
    dataset = load_dataset(tmp_path, "val")
    assert dataset.class_names == ("BG", "class_0", "class_1", "class_7")
    assert [problem.kind for problem in dataset.problems].count("broken record") == 2
    write(tmp_path / "data.yaml", "names: [")
    with pytest.raises(DatasetError, match=r"cannot be read as YOLO: data\.yaml"):
        load_dataset(tmp_path, "val")


def test_a_folder_of_photos_and_notes_is_not_yolo(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    write(tmp_path / "README.txt", "photos")
    with pytest.raises(DatasetError, match="not a data set with a part 'train'"):
        load_dataset(tmp_path, "train")


def test_entities_in_xml_are_refused(tmp_path: Path) -> None:
    voc(tmp_path)
    write(tmp_path / "Annotations" / "a.xml", '<!DOCTYPE x [<!ENTITY a "b">]><annotation>&a;</annotation>')
    dataset = load_dataset(tmp_path, "train")
    assert len(dataset) == 0
    assert "defines entities" in dataset.problems[0].detail
