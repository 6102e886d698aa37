"""Average precision: equal to pycocotools on the files themselves, to the last digit; the command; its files."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from blu_export.cli.main import main
from blu_export.data.dataset import Annotation, Dataset, Record
from blu_export.data.formats.coco import load_coco
from blu_export.errors import DatasetError, UsageError
from blu_export.evaluate.coco import NAMES, STATS, Errors, Evaluator, Expectation
from blu_export.evaluate.detect import map_classes
from blu_export.evaluate.files import as_detections
from blu_export.evaluate.results import read_results, write_results

FakeOnnx = Callable[..., Path]


def polygon(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """A star-shaped polygon somewhere in the photo; a size of every COCO class of sizes."""
    radius = float(np.exp(rng.uniform(np.log(6), np.log(0.45 * min(height, width)))))
    y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radii = radius * rng.uniform(0.6, 1, 9)
    return np.round(np.stack([x + radii * np.cos(angles), y + radii * np.sin(angles)], 1).ravel(), 2).tolist()


def made_coco(folder: Path) -> Path:
    """Polygons, RLE, crowds, two-part objects, gaps in the category ids, a category without objects."""
    rng = np.random.default_rng(4)
    height, width = 240, 320
    annotations = []
    for image_id in (30, 4, 17, 8, 99):
        for number in range(int(rng.integers(4, 9))):
            parts = [polygon(rng, height, width) for _ in range(1 + number % 2)]
            rle = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
            segmentation: Any = parts
            if crowd := number == 3:
                mask = coco_mask.decode(rle).T.ravel()
                changes = np.flatnonzero(np.diff(mask, prepend=0))
                counts = np.diff(changes, prepend=0, append=mask.size).tolist()
                segmentation = {"size": [height, width], "counts": counts}
            category = int(rng.choice([3, 90, 7]))
            annotations.append({"id": len(annotations), "image_id": image_id, "category_id": category,
                                "bbox": coco_mask.toBbox(rle).tolist(), "area": float(coco_mask.area(rle)) * 0.97,
                                "segmentation": segmentation, "iscrowd": int(crowd)})  # fmt: skip
    annotations[0]["id"] = 1000  # plain pycocotools treats a match with id 0 as none
    path = folder / "instances_val.json"
    path.write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i}.png", "height": height, "width": width} for i in (30, 4, 17, 8, 99)],
        "categories": [{"id": i, "name": f"thing {i}"} for i in (90, 3, 7, 12)],
        "annotations": annotations,
    }))  # fmt: skip
    return path


def noisy_results(truth: COCO) -> list[dict[str, Any]]:
    """Shifted objects, some lost, some twice, some of another class, some invented."""
    rng = np.random.default_rng(7)
    categories = truth.getCatIds()
    rows = []
    for annotation in truth.dataset["annotations"]:
        mask = truth.annToMask(annotation)
        for _ in range(int(rng.choice([0, 1, 1, 1, 2]))):
            dx, dy = rng.normal(0, 0.03 * np.sqrt(annotation["area"]), 2)
            moved = cv2.warpAffine(mask, np.array([[1, 0, dx], [0, 1, dy]]), mask.shape[::-1])
            rle = coco_mask.encode(np.asfortranarray(moved))
            category = annotation["category_id"] if rng.random() < 0.9 else int(rng.choice(categories))
            rows.append({"image_id": annotation["image_id"], "category_id": category, "score": round(rng.random(), 2),
                         "bbox": (coco_mask.toBbox(rle) + [0.5, 0, 0.25, 0]).tolist(),
                         "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}})  # fmt: skip
    return rows


def judged(truth: COCO, rows: list[dict[str, Any]], kind: str, category: int | None = None) -> list[float]:
    """What plain pycocotools says."""
    found = truth.loadRes([dict(row) for row in rows])
    judge = COCOeval(truth, found, kind)
    if category is not None:
        judge.params.catIds = [category]
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    return [math.nan if value == -1 else value for value in judge.stats]


@pytest.mark.parametrize("source", ["made", "coco"])
def test_equal_to_pycocotools_to_the_last_digit(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if source == "made":
        path = made_coco(tmp_path)
    else:
        path = request.getfixturevalue("shared") / "data/coco_val129/annotations/instances_val2017.json"
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        rows = noisy_results(truth)
        expected = {
            "box": judged(truth, [{k: v for k, v in row.items() if k != "segmentation"} for row in rows], "bbox"),
            # Results with masks alone, as COCO's own are: with a bbox, small and large would mean the box.
            "mask": judged(truth, [{k: v for k, v in row.items() if k != "bbox"} for row in rows], "segm"),
        }
    saved = tmp_path / "results.json"
    saved.write_text(json.dumps(rows))
    dataset = load_coco(path)
    evaluation = Evaluator(dataset)(read_results(saved, dataset)[0])
    for kind, values in expected.items():
        assert 0.05 < values[0] < 0.95  # otherwise the comparison would show little
        np.testing.assert_array_equal(list(evaluation.scores[kind].summary.values()), values)
    assert tuple(evaluation.values) == NAMES

    k = 2
    with contextlib.redirect_stdout(io.StringIO()):
        alone = judged(
            truth, [{k: v for k, v in row.items() if k != "bbox"} for row in rows], "segm", dataset.category_ids[k]
        )
    found = evaluation.scores["mask"].classes[dataset.class_names[k]]
    assert found.keys() == set(STATS) - {"ar1", "ar10"}
    for name, value in zip(STATS, alone, strict=True):
        if name in found:
            np.testing.assert_array_equal(found[name], value, name)


@pytest.fixture
def squares() -> Dataset:
    """Two photos with squares of 20 pixels: three annotated, one of them in a crowd."""

    def square(x: int, crowd: bool = False) -> Annotation:
        return Annotation(1, (10, x, 30, x + 20), [[x, 10, x + 20, 10, x + 20, 30, x, 30]], crowd)

    records = (
        Record(1, "a.png", 60, 100, (square(10), square(40), square(70, crowd=True))),
        Record(2, "b.png", 60, 100, (square(10),)),
    )
    return Dataset(("BG", "coat", "hat"), records, category_ids=(0, 5, 9))


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [10, 10, 30, 10, 30, 30],
        [[10, 10, math.nan, 10, 30, 30]],
        {"size": [60, 100], "counts": "zzzzzz"},
        {"size": [100, 60], "counts": [6000]},
        {"size": [60, 100], "counts": [10, 20]},
        {"size": [60, 100], "counts": [10, -20, 6010]},
    ],
)
def test_a_broken_mask_is_refused(squares: Dataset, segmentation: Any) -> None:
    first, second = squares.records
    broken = replace(second.annotations[0], segmentation=segmentation)
    dataset = replace(squares, records=(first, replace(second, annotations=(broken,))))
    with pytest.raises(DatasetError, match=r"The mask of object 1 on b\.png cannot be read"):
        Evaluator(dataset)


def found_square(image_id: int, x: int, score: float = 0.9, category: int = 1) -> dict[str, Any]:
    mask = np.zeros((60, 100), np.uint8, order="F")
    mask[10:30, x : x + 20] = 1
    return {"image_id": image_id, "category_id": category, "bbox": [x, 10.0, 20.0, 20.0], "score": score,
            "segmentation": coco_mask.encode(mask) | {"counts": coco_mask.encode(mask)["counts"].decode()}}  # fmt: skip


def test_errors_of_a_photo(squares: Dataset) -> None:
    rows = [
        found_square(1, 10),
        found_square(1, 41, 0.4),  # right, but below the score that is shown
        found_square(1, 70),  # in the crowd: neither right nor false
        found_square(1, 10, 0.8),  # once more: false
        found_square(2, 10),
    ]
    evaluation = Evaluator(squares)(rows)
    assert evaluation.scores["mask"].errors == {1: Errors(1, 1, 1), 2: Errors(1, 0, 0)}
    assert evaluation.worst(5) == [(1, Errors(1, 1, 1))]
    assert Errors(1, 1, 1).f1 == pytest.approx(0.5)
    assert evaluation.objects == {"coat": 3, "hat": 0}
    assert math.isnan(evaluation.scores["box"].classes["hat"]["ap"])
    assert evaluation.to_json()["classes"]["hat"]["box"]["ap"] is None


def test_nothing_found_is_zero_and_all_found_is_one(squares: Dataset) -> None:
    evaluator = Evaluator(squares)
    nothing = evaluator([]).values
    assert {nothing["box_ap"], nothing["mask_ap50"]} == {0.0}
    everything = evaluator([found_square(1, 10), found_square(1, 40), found_square(2, 10)])
    assert everything.values["box_ap"] == everything.values["mask_ap"] == pytest.approx(1.0)
    assert math.isnan(everything.values["mask_ap_large"])
    boxes = [{key: v for key, v in found_square(1, 10).items() if key != "segmentation"}]
    assert list(evaluator(boxes).scores) == ["box"]


def test_classes_are_matched_by_name() -> None:
    assert map_classes(("BG", "hat", "coat", "shoe"), ("BG", "coat", "hat")).tolist() == [0, 2, 1, 0]
    assert map_classes(("BG", "class_1", "class_2"), ("BG", "coat", "hat")).tolist() == [0, 1, 2]
    with pytest.raises(UsageError, match=r"the model does not: hat\. The model's are coat, shoe"):
        map_classes(("BG", "coat", "shoe"), ("BG", "coat", "hat"))
    with pytest.raises(UsageError, match="class_3"):
        map_classes(("BG", "class_1", "class_2", "class_3"), ("BG", "coat", "hat"))


def test_results_file_keeps_the_ids_of_the_source(squares: Dataset, tmp_path: Path) -> None:
    rows = [found_square(1, 10), found_square(2, 40, category=2)]
    path = tmp_path / "results.json"
    write_results(path, rows, squares)
    assert [row["category_id"] for row in json.loads(path.read_text())] == [5, 9]
    assert read_results(path, squares) == (rows, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": 3}, "there is no photo 3"),
        ({"category_id": 1}, "there is no category 1"),
        ({"score": None}, "NoneType"),
        ({"score": float("nan")}, "the score nan"),
        ({"bbox": [1, 2, 3]}, "the bbox [1, 2, 3]"),
        ({"bbox": None, "segmentation": None}, "'bbox' is absent"),
        ({"segmentation": {"size": [60, 99], "counts": "0"}}, "does not fit a photo of"),
        ({"segmentation": {"size": [60, 100], "counts": "0PP"}}, "the counts are not COCO's"),
        ({"segmentation": 5}, "int"),
        ({"segmentation": {"size": [60, 100], "counts": [-1, 6001]}}, "do not add up"),
        ({"bbox": [0, 0, 1, 10**400]}, "too large"),
        ({"segmentation": None}, "segmentation is absent"),
    ],
)
def test_a_broken_result_costs_itself(squares: Dataset, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "results.json"
    good = found_square(1, 10) | {"category_id": 5}
    path.write_text(json.dumps([good, good | change, good]))
    rows, left_out = read_results(path, squares)
    assert (len(rows), len(left_out)) == (2, 1)
    assert message in left_out[0]
    path.write_text(json.dumps([good | {"image_id": 3}]))
    with pytest.raises(DatasetError, match=r"No result in .*results\.json belongs to .*there is no photo 3"):
        read_results(path, squares)


def test_results_of_infer_are_matched_by_file_and_class_name(squares: Dataset, tmp_path: Path) -> None:
    records = [
        replace(record, uri=f"/data/cam{number}/IMG.jpg", image_id=f"frame_{number}")
        for number, record in enumerate(squares.records, start=1)
    ]
    dataset = replace(squares, records=tuple(records))
    content = {
        "images": [{"id": 1, "file_name": "D:\\photos\\cam2\\img.jpg"}, {"id": 2, "file_name": "other/IMG.jpg"}],
        "categories": [{"id": 1, "name": "hat"}, {"id": 2, "name": "Coat "}, {"id": 3, "name": "shoe"}],
        "annotations": [found_square(1, 10) | {"category_id": 2, "score": "0.5"}, found_square(2, 10, category=2)],
    }
    path = tmp_path / "detections.coco.json"
    path.write_text(json.dumps(content))
    rows, left_out = read_results(path, dataset)
    assert [(row["image_id"], row["category_id"], row["score"]) for row in rows] == [("frame_2", 1, 0.5)]
    assert left_out == ["[1]: there is no photo 2"]  # in two folders, neither of which is named
    evaluation = Evaluator(dataset)(rows)
    assert set(evaluation.scores["box"].errors) == {"frame_1", "frame_2"}


def test_more_detections_count_than_in_coco() -> None:
    squares = [(x, y) for x in range(0, 200, 10) for y in range(0, 200, 10)][:150]
    outlines = [[x, y, x + 8, y, x + 8, y + 8, x, y + 8] for x, y in squares]
    annotations = tuple(Annotation(1, (y, x, y + 8, x + 8), [o]) for (x, y), o in zip(squares, outlines, strict=True))
    dataset = Dataset(("BG", "cell"), (Record(1, "a.png", 200, 200, annotations),))
    rows = [{"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [x, y, 8, 8]} for x, y in squares]
    few, many = Evaluator(dataset)(rows), Evaluator(dataset, max_dets=150)(rows)
    assert few.values["box_ar100"] == pytest.approx(100 / 150)
    assert (many.values["box_ar100"], many.values["box_ap"]) == (1.0, 1.0)
    assert many.values["box_ar1"] == pytest.approx(1 / 150)
    assert (few.crowded, many.crowded) == (1, 0)


def test_the_summary_of_other_max_dets_is_pycocotools_own(squares: Dataset) -> None:
    rows = [found_square(1, 10), found_square(1, 12, category=2), found_square(2, 41, category=2)]
    ours, theirs = Evaluator(squares, max_dets=99)(rows), Evaluator(squares)(rows)
    np.testing.assert_array_equal(list(ours.values.values()), list(theirs.values.values()))


def test_a_photo_whose_object_has_a_box_alone_is_no_mistake_of_masks(squares: Dataset) -> None:
    boxes_only = replace(squares.records[1].annotations[0], segmentation=[])
    record = replace(squares.records[1], annotations=(boxes_only,))
    dataset = replace(squares, records=(squares.records[0], record))
    y1, x1, y2, x2 = boxes_only.box
    row = found_square(2, int(x1), category=boxes_only.category)
    evaluation = Evaluator(dataset)([row])
    assert evaluation.scores["box"].errors[2].missed == evaluation.scores["box"].errors[2].false
    assert (evaluation.scores["mask"].errors[2].missed, evaluation.scores["mask"].errors[2].false) == (0, 0)
    assert y2 - y1 == x2 - x1 == 20


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '{"annotations": [], "images": [3]}'])
def test_no_results_at_all(squares: Dataset, tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"results\.json"):
        read_results(path, squares)


def test_expectations() -> None:
    expected = Expectation.parse(" mask_ap >= 0.30")
    assert str(expected) == "mask_ap>=0.3"
    assert expected.holds({"mask_ap": 0.3}) and not expected.holds({"mask_ap": 0.2999})
    assert not expected.holds({"mask_ap": math.nan}) and not expected.holds({})
    assert Expectation.parse("box_ap50<.5").holds({"box_ap50": 0.4})
    for text in ("mask_ap", "ap>=0.3", "mask_ap>=", "mask_ap=0.3", "mask_ap>=x"):
        with pytest.raises(UsageError, match="not an expectation"):
            Expectation.parse(text)


def test_drawn_results_need_no_masks_and_stay_inside(squares: Dataset) -> None:
    rows = [{"category_id": 1, "score": 0.5, "bbox": [-5.0, 50.0, 20.0, 20.0]}, found_square(1, 10, 1.0)]
    found = as_detections(rows, squares.records[0], squares.class_names)
    assert found.rois.tolist() == [[10, 10, 30, 30], [50, 0, 60, 15]]
    assert len(as_detections([], squares.records[0], squares.class_names)) == 0


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """What the fake model finds: a coat all over each photo, a shoe in its first quarter. Ids 5 and 9."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    annotations, images = [], []
    for image_id in (11, 12):
        cv2.imwrite(str(folder / "images" / f"{image_id}.png"), np.full((64, 64, 3), 250, np.uint8))
        images.append({"id": image_id, "file_name": f"{image_id}.png", "height": 64, "width": 64})
        for category, side in ((9, 64), (5, 32)):
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category,
                                "bbox": [0, 0, side, side], "area": side * side,
                                "segmentation": [[0, 0, side, 0, side, side, 0, side]]})  # fmt: skip
    categories = [{"id": 9, "name": "coat"}, {"id": 5, "name": "shoe"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder


def blu(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exit_:
        main(["evaluate", *map(str, arguments)])
    return int(exit_.value.code or 0)


def test_command(photos: Path, fake_onnx: FakeOnnx, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, saved, out = fake_onnx(), tmp_path / "results.json", tmp_path / "report"
    options = ["--json", "--expect", "mask_ap>=0.9", "--batch", 2, "--save", saved, "--out", out]
    assert blu(model, photos, *options) == 0
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert (report["photos"], report["objects"], report["detections"], report["passed"]) == (2, 4, 4, True)
    assert report["mask"]["ap50"] == report["classes"]["shoe"]["box"]["ap50"] == pytest.approx(1.0)
    assert report["mask"]["ap_large"] is None
    assert "onnxruntime" in report["judged"]
    assert json.loads((out / "evaluation.json").read_text()) == report
    assert (out / "precision_recall.png").stat().st_size > 1000
    assert {row["category_id"] for row in json.loads(saved.read_text())} == {5, 9}
    assert f"wrote {saved}" in said.err

    # The saved results are worth the same without the model; one that is not met makes the exit code 1.
    assert blu("--results", saved, photos, "--json") == 0
    again = json.loads(capsys.readouterr().out)
    assert [again[key] for key in ("box", "mask", "classes")] == [report[key] for key in ("box", "mask", "classes")]
    arguments = [saved, "--annotations", photos / "instances_val.json", "--expect", "mask_ap_large>=0.1"]
    assert blu(*arguments, "--expect", "box_ap>0.1", "--limit", 1) == 1
    said = capsys.readouterr()
    assert "1 photos, 2 objects, 2 detections" in said.out
    assert "coat" in said.out
    assert "does not reach mask_ap_large>=0.1" in said.err


def test_the_next_command_judges_the_same_photos(
    photos: Path, fake_onnx: FakeOnnx, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "my results.json"
    (photos / "instances_val.json").rename(photos / "instances_train.json")
    for options, limited in ((["--limit", 1], " --limit 1"), ([], "")):
        assert blu(fake_onnx(), photos, "--split", "train", "--save", saved, *options) == 0
        command = f"blu evaluate --results '{saved}' {photos} --split train{limited}"
        assert f"next: {command}\n" in capsys.readouterr().err
    assert blu(*shlex.split(command)[2:]) == 0
    (photos / "instances_train.json").rename(photos / "instances_val.json")
    assert blu(fake_onnx(), photos, "--save", saved) == 0
    assert f"next: blu evaluate --results '{saved}' {photos}\n" in capsys.readouterr().err


def test_the_worst_photos_are_drawn(photos: Path, fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    # The model finds nothing with a sure score on the dark photo.
    cv2.imwrite(str(photos / "images" / "12.png"), np.full((64, 64, 3), 90, np.uint8))
    assert blu(fake_onnx(), photos / "images", "--annotations", photos / "instances_val.json", "--out", tmp_path) == 0
    pictures = sorted(path.name for path in (tmp_path / "worst").iterdir())
    assert pictures[0] == "01-12.jpg"
    assert cv2.imread(str(tmp_path / "worst" / "01-12.jpg")).std() > 5


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no data set"),
        (["model.onnx"], 2, "no data set"),
        (["a", "b"], 2, "'a' is not a model"),
        (["data", "--expect", "ap>1"], 2, "not an expectation"),
        (["absent.onnx", "data"], 3, "no model file absent.onnx"),
        (["--results", "r.json", "absent"], 3, "There is no absent."),
        (["MODEL", "DATA", "--set", "detection_min_confidence=0"], 2, "fixed in it"),
        (["MODEL", "DATA", "--runtime", "keras"], 2, "keras cannot run"),
        (["OTHER", "DATA"], 2, "the model does not: shoe"),
    ],
)
def test_refusals(
    photos: Path,
    fake_onnx: FakeOnnx,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    words: dict[str, Callable[[], Path]] = {
        "MODEL": fake_onnx,
        "OTHER": lambda: fake_onnx(class_names=("BG", "coat", "hat")),
        "DATA": lambda: photos,
    }
    found = blu(*(words[word]() if word in words else word for word in arguments))
    said = capsys.readouterr().err
    assert (found, message in said) == (code, True), said
