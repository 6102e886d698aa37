"""Jobs on processes of this machine: what comes out, and what bad photos and changed sources do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from batch_jobs import check_levels, rows, run, write_photo
from fake_runner import CRASH, HANG, LOSE, REFUSE, write_model
from PIL import Image
from pycocotools.coco import COCO

from blu_export.batch.plan import Shard
from blu_export.batch.process import Job, Worker
from blu_export.batch.shard import Summary, encode
from blu_export.detector import load
from blu_export.errors import BluError, DatasetError, ModelFileError, UsageError
from blu_export.runtime.options import RunnerOptions

Photos = Callable[..., Path]


def test_rows_are_what_blu_infer_finds(fake_onnx: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    model, folder = fake_onnx(), photos(60, 120, 240)
    report = run(source=folder, sink=tmp_path / "found", model=model, loader="blu_export.runtime:load_runner")
    detector = load(model)
    for path, row in rows(tmp_path / "found").items():
        expected = detector(path).to_json()
        assert [row["height"], row["width"]] == expected["image_size"]
        assert row["detections"] == expected["detections"]
        assert (row["error"], row["model_sha256"]) == (None, report.model["sha256"])
    assert (report.photos, report.ran, report.failed, report.detections) == (3, 3, 0, 6)
    assert set(report.stage_seconds) == {"read", "decode", "mold", "run", "unmold", "write"}
    # Any reader of Parquet folders sees the rows and nothing else.
    assert pq.read_table(tmp_path / "found").num_rows == 3


def test_tiles_are_looked_at_and_belong_to_the_sink(
    fake_onnx: Callable[..., Path], photos: Photos, tmp_path: Path
) -> None:
    model, folder, loader = fake_onnx(), photos(60, 120), "blu_export.runtime:load_runner"
    for path in folder.iterdir():
        Image.open(path).resize((72, 48)).save(path)  # there is something to cut
    run(source=folder, sink=tmp_path / "found", model=model, loader=loader, tile=32, overlap=0.5, batch=3)
    detector = load(model)
    for path, row in rows(tmp_path / "found").items():
        tiled = detector(path, tile=32, overlap=0.5).to_json()
        assert row["detections"] == tiled["detections"] != detector(path).to_json()["detections"]
        assert [row["height"], row["width"]] == tiled["image_size"]
    with pytest.raises(UsageError, match="with --tile 32 --overlap 0.5, not without tiles"):
        run(source=folder, sink=tmp_path / "found", model=model, loader=loader)
    with pytest.raises(UsageError, match="Tiles of 3 pixels are too small"):
        run(source=folder, sink=tmp_path / "other", model=model, tile=3)


@pytest.mark.parametrize("batch", [1, 4])
def test_bad_photos_get_a_row_with_the_error(photos: Photos, model: Path, tmp_path: Path, batch: int) -> None:
    folder = photos(10, REFUSE, 30, 40)
    (folder / "text.jpg").write_text("no photo")
    names = tmp_path / "names.txt"
    names.write_text("".join(f"{path}\n" for path in sorted(folder.iterdir())) + "gone.png\nmemory://gone.png\n")
    report = run(source=names, sink=tmp_path / "found", model=model, batch=batch)
    errors = {Path(path).name: row["error"] for path, row in rows(tmp_path / "found").items() if row["error"]}
    assert set(errors) == {"01.png", "text.jpg", "gone.png"} and (report.failed, report.photos) == (4, 7)
    assert "The fake refuses this photo" in errors["01.png"]
    assert "is not an image" in errors["text.jpg"]
    assert "memory://gone.png" in rows(tmp_path / "found")["memory://gone.png"]["error"]


@pytest.mark.parametrize(("color", "death"), [(CRASH, "SIGKILL"), (LOSE, "exit code 1")])
def test_a_photo_that_kills_workers_costs_itself_only(
    photos: Photos, model: Path, tmp_path: Path, color: Any, death: str
) -> None:
    folder = photos(10, 20, color, 40, 50)
    report = run(source=folder, sink=tmp_path / "found", model=model, shard_size=3, batch=2)
    found = rows(tmp_path / "found")
    assert [Path(path).name for path, row in found.items() if row["error"]] == ["02.png"]
    assert death in found[str(folder / "02.png")]["error"]
    assert (report.failed, report.photos) == (1, 5)


def test_a_name_that_is_not_utf8(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder = photos(10)
    for name, content in ((b"caf\xe9.png", (folder / "00.png").read_bytes()), (b"th\xe9.png", b"no photo")):
        try:
            Path(os.fsdecode(os.path.join(os.fsencode(folder), name))).write_bytes(content)
        except OSError:
            pytest.skip("this file system has UTF-8 names only")
    report = run(source=folder, sink=tmp_path / "found", model=model, format="coco")
    assert (report.photos, report.failed) == (3, 1)
    good, odd, bad = pq.read_table(tmp_path / "found").to_pylist()
    assert odd["image"] == f"{folder}/caf\\udce9.png" and odd["detections"] == good["detections"]
    assert bad["image"] == f"{folder}/th\\udce9.png" and "not an image" in bad["error"]
    assert run(source=folder, sink=tmp_path / "found", model=model).ran == 0


def test_a_file_that_cannot_be_written_does_not_count_as_deaths(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder, sink = photos(10), tmp_path / "found"
    run(source=folder, sink=sink, model=model)
    write_photo(folder / "01.png", 20)
    (sink / "part-00001.parquet").mkdir()
    with pytest.raises(DatasetError, match=r"part-00001\.parquet cannot be written"):
        run(source=folder, sink=sink, model=model)


def test_rows_that_do_not_fit_are_told_of() -> None:
    strange = {"image": "caf\udce9", "height": 1, "width": 1, "detections": [], "error": None, "model_sha256": ""}
    with pytest.raises(DatasetError, match="rows of shard 3 do not fit into Parquet"):
        encode([strange], Summary(index=3, photos=1, failed=0, detections=0, seconds=0.0))


def test_a_worker_that_hangs_is_killed(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder = photos(10, HANG, 30)
    (tmp_path / "found").mkdir()
    job = Job(str(model), _sha256(model), str(tmp_path / "found"), loader="fake_runner:load")
    shard = Shard(0, tuple(str(path) for path in sorted(folder.iterdir())))
    with Worker(job, patience=2.0) as worker:
        summary = worker.run(shard)
    assert (summary.photos, summary.failed) == (3, 1)


def test_jobs_that_cannot_go_on_say_why(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder = photos(10)
    model.write_text("{}")
    with pytest.raises(BluError, match="worker|Worker"):
        run(source=folder, sink=tmp_path / "found", model=model)
    model.write_text("no JSON")
    with pytest.raises(ModelFileError, match="is not a fake model"):
        run(source=folder, sink=tmp_path / "found2", model=model)
    with pytest.raises(DatasetError, match="There is no model file"):
        run(source=folder, sink=tmp_path / "found3", model=tmp_path / "gone.onnx")
    with pytest.raises(UsageError, match="There is no format 'tsv'"):
        run(source=folder, sink=tmp_path / "found4", model=model, format="tsv")
    assert not (tmp_path / "found4").exists()


def test_finished_shards_are_skipped_and_new_photos_added(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder, sink = photos(10, 20, 30, 40), tmp_path / "found"
    assert run(source=folder, sink=sink, model=model, shard_size=2, workers=2).ran == 4
    before = {path.name: path.stat().st_mtime_ns for path in sink.glob("part-*")}
    write_photo(folder / "04.png", 50)
    report = run(source=folder, sink=sink, model=model, shard_size=3)
    assert (report.ran, report.photos) == (1, 5)
    assert {name: (sink / name).stat().st_mtime_ns for name in before} == before
    check_levels(sink, folder, [10, 20, 30, 40, 50])
    nothing = run(source=folder, sink=sink, model=model)
    assert (nothing.ran, nothing.photos, nothing.rate) == (0, 5, 0.0)


def test_damaged_and_missing_files_are_made_again(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder, sink = photos(10, 20, 30, 40), tmp_path / "found"
    run(source=folder, sink=sink, model=model, shard_size=1)
    (sink / "part-00000.parquet").write_bytes(b"PAR1")
    (sink / "part-00001.parquet").unlink()
    (sink / "part-00002.parquet").write_bytes((sink / "part-00003.parquet").read_bytes())
    assert run(source=folder, sink=sink, model=model).ran == 3
    check_levels(sink, folder, [10, 20, 30, 40])


def test_failed_photos_are_tried_again_when_asked(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder, sink = photos(10, 20, 30), tmp_path / "found"
    (folder / "01.png").write_bytes(b"")
    assert run(source=folder, sink=sink, model=model, shard_size=1).failed == 1
    write_photo(folder / "01.png", 20)
    assert run(source=folder, sink=sink, model=model).failed == 1
    report = run(source=folder, sink=sink, model=model, retry_failed=True)
    assert (report.ran, report.failed) == (1, 0)
    check_levels(sink, folder, [10, 20, 30])


@pytest.mark.parametrize("finished", [False, True])
def test_what_killed_runs_left_is_removed(photos: Photos, model: Path, tmp_path: Path, finished: bool) -> None:
    folder, sink = photos(10), tmp_path / "found"
    sink.mkdir()
    if finished:
        run(source=folder, sink=sink, model=model)
    (sink / ".coco-abc").mkdir()
    for name in (".part-00000.abc.parquet", "._plan.abc.json", ".coco-abc/_detections.coco.json", ".mine"):
        (sink / name).write_text("half")
    assert run(source=folder, sink=sink, model=model).ran == (0 if finished else 1)
    assert sorted(path.name for path in sink.iterdir()) == [".mine", "_plan.json", "part-00000.parquet"]


def test_another_model_is_not_mixed_in(photos: Photos, model: Path, tmp_path: Path) -> None:
    run(source=photos(10), sink=tmp_path / "found", model=model)
    write_model(model, shift=1.0)
    with pytest.raises(UsageError, match="results of another model"):
        run(source=photos(10), sink=tmp_path / "found", model=model)


def test_coco(photos: Photos, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, sink = photos(10, 20, 30), tmp_path / "found"
    (folder / "01.png").write_bytes(b"no photo")
    report = run(source=folder, sink=sink, model=model, shard_size=2, format="coco")
    assert report.coco == str(sink / "_detections.coco.json")
    coco = COCO(report.coco)
    assert [each["file_name"] for each in coco.loadImgs([1, 2, 3])] == [str(folder / f"0{i}.png") for i in range(3)]
    assert "error" in coco.imgs[2] and coco.imgs[1]["height"] == 24
    assert len(coco.anns) == 4 and [each["image_id"] for each in coco.anns.values()] == [1, 1, 3, 3]
    assert coco.cats == {1: {"id": 1, "name": "coat"}, 2: {"id": 2, "name": "shoe"}}
    whole = load_mask(coco, 1)
    assert whole.shape == (24, 32) and whole.sum() == coco.anns[1]["area"]
    assert pq.read_table(sink).num_rows == 3  # it is not taken for Parquet
    again = run(source=folder, sink=sink, model=model, format="coco")
    assert again.ran == 0 and COCO(again.coco).anns == coco.anns
    assert sorted(path.name for path in sink.iterdir()) == [
        "_detections.coco.json",
        "_plan.json",
        "part-00000.parquet",
        "part-00001.parquet",
    ]


def load_mask(coco: COCO, annotation: int) -> Any:
    return coco.annToMask(coco.anns[annotation])


def test_the_command(fake_onnx: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    folder = photos(60, 120)
    command = ["batch", str(folder), str(tmp_path / "found"), "--model", str(fake_onnx())]

    def blu(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "blu_export", *arguments], capture_output=True, text=True, check=False
        )

    first = blu(*command)
    assert first.returncode == 0, first.stderr
    assert "2 photos, 4 detections, 0 failed" in first.stdout and "2 photos in" in first.stdout
    (folder / "02.png").write_bytes(b"no photo")
    second = blu(*command, "--json")
    assert second.returncode == 3
    report = json.loads(second.stdout)
    assert (report["photos"], report["ran"], report["failed"]) == (3, 1, 1)
    assert "3 photos, 1 of them new; 2 are finished, 1 to do" in second.stderr
    assert blu("batch", str(tmp_path / "nowhere"), str(tmp_path / "x"), "--model", str(fake_onnx())).returncode == 3


def _sha256(path: Path) -> str:
    from blu_export.files import sha256_of

    return sha256_of(path)


def test_formats_of_blu_infer(fake_onnx: Callable[..., Path], photos: Photos, tmp_path: Path) -> None:
    folder, sink = photos(60, 240), tmp_path / "found"
    (folder / "text.jpg").write_text("no photo")
    job = {"source": folder, "sink": sink, "model": fake_onnx(), "loader": "blu_export.runtime:load_runner"}
    table = run(**job, format="csv").files
    assert table == str(sink / "_detections.csv")
    lines = Path(table).read_text().splitlines()
    assert len(lines) == 1 + 4 and lines[1].startswith(f"{folder / '00.png'},,1,,1,coat,")
    for name, files in {
        "overlay": ["00.overlay.jpg", "01.overlay.jpg"],
        "cutout": ["00.cutout.png", "01.cutout.1.coat.png", "01.cutout.png"],  # the others' scores are not shown
        "yolo": ["00.txt", "01.txt", "data.yaml"],
    }.items():
        report = run(**job, format=name)
        assert (report.ran, report.files) == (0, str(sink / f"_{name}"))
        assert sorted(path.name for path in (sink / f"_{name}").iterdir()) == files
    assert pq.read_table(sink).num_rows == 3
    with pytest.raises(UsageError, match="parquet, overlay"):
        run(**job, format="jsn")


def test_overlays_of_photos_with_an_alpha_channel(fake_onnx: Callable[..., Path], tmp_path: Path) -> None:
    folder, sink = tmp_path / "photos", tmp_path / "found"
    folder.mkdir()
    Image.new("RGBA", (32, 24), (9, 9, 9, 240)).save(folder / "a.png")
    model = fake_onnx(image_channel_count=4, mean_pixel=(0.0, 0.0, 0.0, 0.0))
    loader = "blu_export.runtime:load_runner"
    report = run(source=folder, sink=sink, model=model, loader=loader, format="overlay", max_pixels=32 * 24)
    assert (report.photos, report.failed) == (1, 0)
    with Image.open(sink / "_overlay" / "a.overlay.jpg") as overlay:
        assert overlay.size == (32, 24)


def test_large_photos_fail_unless_they_are_allowed(photos: Photos, model: Path, tmp_path: Path) -> None:
    folder = photos(10, 20)
    refused = run(source=folder, sink=tmp_path / "refused", model=model, max_pixels=100)
    assert (refused.failed, refused.photos) == (2, 2)
    assert all("--max-pixels" in row["error"] for row in rows(tmp_path / "refused").values())


def test_settings_of_weights_reach_the_workers(photos: Photos, model: Path, tmp_path: Path) -> None:
    settings = ("IMAGE_MAX_DIM=256",)  # the file has its own
    with pytest.raises(UsageError, match="are fixed in it"):
        run(
            source=photos(10),
            sink=tmp_path / "found",
            model=model,
            options=RunnerOptions(settings=settings),
            loader="blu_export.runtime:load_runner",
        )
