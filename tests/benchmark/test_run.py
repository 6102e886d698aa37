"""The benchmark on a model that costs nothing: what is in the result, what is said when something is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blu_export.benchmark import machine
from blu_export.benchmark.candidates import Candidate, candidates_of, file_candidates, model_names
from blu_export.benchmark.flops import Flops
from blu_export.benchmark.report import compare, headline, markdown, read_results, summary
from blu_export.benchmark.run import run_benchmark
from blu_export.benchmark.save import TABLE_ENDS, TABLE_STARTS, insert_table, save_results
from blu_export.benchmark.settings import QUICK, Settings
from blu_export.cli.main import main
from blu_export.errors import BluError, MissingDependencyError, ModelFileError, UsageError
from blu_export.runtime import RunnerOptions
from blu_export.runtime.openvino import has_bf16
from blu_export.runtime.tuning import recall

FakeOnnx = Callable[..., Path]
BRIEF = Settings(repeats=2, warmup=0, batches=(1, 2), rounds=1, cold=False, curves=False, threads=2)


@pytest.fixture(autouse=True)
def small_peak(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_PRODUCTS", ((64, 2),))
    monkeypatch.setattr("blu_export.benchmark.model_run.LARGE_PHOTO", (60, 80))
    monkeypatch.setenv("BLU_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    from PIL import Image

    path = tmp_path / "photo.png"
    Image.new("RGB", (60, 40), (200, 200, 200)).save(path)
    return path


@pytest.fixture
def model(fake_onnx: FakeOnnx, tmp_path: Path) -> Path:
    """coat.onnx, with coat.int8.onnx and coat.fp16.onnx beside it."""
    parity = json.dumps({"passed": True, "matched": 3, "instances": 4})
    for name, metadata in (
        ("coat.onnx", {}),
        ("coat.int8.onnx", {"blu_precision": "int8", "blu_parity": parity}),
        ("coat.fp16.onnx", {"blu_precision": "fp16"}),
    ):
        fake_onnx(metadata).rename(tmp_path / name)
    return tmp_path / "coat.onnx"


@pytest.fixture
def result(model: Path, photo: Path) -> dict[str, Any]:
    return run_benchmark(file_candidates(model), photo, BRIEF)


def test_candidates_are_the_runtimes_and_the_precisions_beside_the_file(model: Path) -> None:
    pytest.importorskip("openvino")
    names = [(c.runtime, c.precision) for c in file_candidates(model) if c.device is None]
    wanted = [(r, p) for p in ("float32", "int8") for r in ("onnxruntime", "openvino")]
    assert names == wanted + [("openvino", "bf16")] * has_bf16()
    # A file in half precision is timed where it is named.
    alone = file_candidates(model.with_name("coat.fp16.onnx"), ["onnxruntime"])
    assert [c.precision for c in alone if c.device is None] == ["fp16"]
    assert {c.model for c in file_candidates(model)} == {"coat"}


def test_files_and_runtimes_that_do_not_fit(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tensorrt cannot run"):
        file_candidates(model, ["tensorrt"])
    with pytest.raises(ModelFileError, match="not a model file"):
        file_candidates(tmp_path / "notes.txt")
    with pytest.raises(ModelFileError, match="cannot be read"):
        file_candidates(tmp_path / "none.onnx")


def test_models_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    def names(*files: str) -> list[str]:
        return list(model_names([tmp_path / file for file in files]).values())

    assert names("a/coat.onnx") == ["coat"]
    assert names("a/coat.onnx", "b/hat.onnx") == ["coat", "hat"]
    assert names("a/coat.onnx", "b/coat.onnx") == ["a/coat", "b/coat"]
    assert names("x/a/coat.onnx", "y/a/coat.onnx", "b/hat.onnx") == ["x/a/coat", "y/a/coat", "hat"]
    # A model on two runtimes, and two precisions of one.
    assert names("a/coat.h5", "b/coat.onnx") == ["coat", "coat"]
    assert names("a/coat.h5", "a/coat.onnx", "b/coat.onnx") == ["a/coat", "a/coat", "b/coat"]
    assert names("a/coat.onnx", "a/coat.int8.onnx", "a/../a/coat.onnx") == ["coat", "coat", "coat"]


def test_files_named_twice_are_measured_once(model: Path) -> None:
    int8 = model.with_name("coat.int8.onnx")
    once, twice = (
        file_candidates(model),
        candidates_of([model, int8, model.parent / ".." / model.parent.name / model.name]),
    )
    assert [each.name for each in twice] == [each.name for each in once]


def test_two_models_of_one_file_name(model: Path, photo: Path, fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    other = tmp_path / "other" / "coat.onnx"
    other.parent.mkdir()
    fake_onnx().rename(other)
    candidates = candidates_of([model, other], ["onnxruntime"])
    result = run_benchmark(candidates, photo, replace(BRIEF, batches=(1,), profile=False))
    mine, others = f"{tmp_path.name}/coat", "other/coat"
    assert list(result["models"]) == [mine, others]
    assert {row["model"] for row in result["rows"]} == {mine, others}
    assert all(row["end_to_end"]["samples"] == 2 and row["stages"]["run"] > 0 for row in result["rows"])
    result["models"][others]["curves"] = {"x": {"x": [1, 2], "unit": "photos", "seconds": {"run": [1.0, 2.0]}}}
    written = save_results(result, tmp_path / "results", lambda message: None)
    assert tmp_path / "results" / "curves-other-coat.png" in written


def test_two_candidates_of_one_name_are_refused(model: Path, photo: Path) -> None:
    candidates = file_candidates(model, ["onnxruntime"])
    with pytest.raises(UsageError, match="2 candidates named coat · onnxruntime · float32"):
        run_benchmark([*candidates, candidates[0]], photo, BRIEF)


def test_a_row_for_each_candidate(result: dict[str, Any]) -> None:
    assert result["peaks"]["float32"] > 0
    assert [(row["runtime"], row["precision"]) for row in result["rows"]][:1] == [("onnxruntime", "float32")]
    for row in result["rows"]:
        assert row["detections"] == 2
        times, stages = row["end_to_end"], row["stages"]
        assert 0 < times["fastest"] <= times["p50"] <= times["p90"] <= times["p99"]
        assert times["samples"] == 2
        assert 0 < stages["run"] < times["p99"]
        alone = {"one a core"} if row["precision"] != "bf16" else set()  # it is not among what auto chooses from
        assert set(row["photos_per_second"]) == {"1", "2"} | alone
        assert 0 < row["around_large"] < 1
        assert ("onnx_stages" in row) == (row["runtime"] == "onnxruntime")
        assert row["notes"] == ({"parity": "3 of 4"} if row["precision"] == "int8" else {})


def test_the_result_is_json_and_its_table_has_every_row(result: dict[str, Any], tmp_path: Path) -> None:
    written = save_results(result, tmp_path / "results", lambda message: None)
    assert read_results(written[0])["rows"] == result["rows"]
    text = markdown(result)
    assert text.startswith(summary(result).rstrip())
    for row in result["rows"]:
        assert f"| **{row['runtime']}** | {row['precision']} |" in text
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_a_model_on_canvases_that_fit_alone_is_shown_on_those(result: dict[str, Any]) -> None:
    square = next(row for row in result["rows"] if (row["runtime"], row["precision"]) == ("onnxruntime", "float32"))
    fit = square | {"runtime": "onnxruntime fit", "end_to_end": square["end_to_end"] | {"p50": 0.123}}
    rest = [row for row in result["rows"] if row is not square]
    assert "| onnxruntime | float32 | 123 ms |" in headline(result | {"rows": [*rest, fit]})
    assert headline(result | {"rows": [square, *rest, fit]}) == headline(result | {"rows": [square, *rest]})


def test_what_was_fastest_is_remembered_but_not_of_a_noisy_machine_or_a_quick_run(
    model: Path, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("blu_export.benchmark.model_run.NOISY_SPREAD", 0.0)
    run_benchmark(file_candidates(model), photo, BRIEF, said.append)
    assert "the machine was too noisy: --runtime auto does not learn from this run" in said
    assert not recall(model).seconds
    monkeypatch.setattr("blu_export.benchmark.model_run.NOISY_SPREAD", float("inf"))
    run_benchmark(file_candidates(model), photo, replace(BRIEF, remember=QUICK.remember))
    assert not recall(model).seconds
    run_benchmark(file_candidates(model), photo, BRIEF)
    assert {"coat.onnx onnxruntime", "coat.int8.onnx onnxruntime"} <= set(recall(model).seconds)


def test_a_peer_that_is_not_here_is_said_and_left_out(model: Path, photo: Path) -> None:
    def absent(threads: int) -> Any:
        raise MissingDependencyError("This needs the package tensorflow, which is not installed.")

    def broken(threads: int) -> Any:
        raise ModuleNotFoundError("No module named 'tf2onnx'", name="tf2onnx")

    peers = [Candidate("coat", "keras", "float32", absent), Candidate("coat", "naive", "float32", broken)]
    result = run_benchmark([*peers, *file_candidates(model, ["onnxruntime"])], photo, BRIEF)
    assert [each["name"] for each in result["skipped"]] == ["coat · keras · float32", "coat · naive · float32"]
    assert "tensorflow" in summary(result) and "tf2onnx" in summary(result)
    assert result["rows"]
    with pytest.raises(BluError, match="Nothing could be measured"):
        run_benchmark(peers, photo, BRIEF)


def test_another_network_has_no_share_of_the_peak(model: Path, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr("blu_export.benchmark.flops.count_flops", lambda *_: Flops({"trunk": 1e6}))
    ours = next(each for each in file_candidates(model, ["onnxruntime"]) if each.precision == "float32")
    other = replace(ours, runtime="torchvision", ours=False, same_network=False, file=None)
    rows = run_benchmark([ours, other], photo, BRIEF)["rows"]
    assert ["share_of_peak" in row for row in rows] == [True, False]


def test_compare_finds_what_became_slower(result: dict[str, Any]) -> None:
    newer = json.loads(json.dumps(result))
    newer["rows"][0]["end_to_end"]["p50"] *= 1.5
    table, slower = compare(result, newer)
    assert len(slower) == 1 and slower[0].startswith("coat · onnxruntime · float32: 1.50")
    assert table.count("1.00") == len(result["rows"]) - 1
    assert compare(result, result)[1] == []
    newer["rows"] = []
    with pytest.raises(BluError, match="no candidate in common"):
        compare(result, newer)


def test_the_commands_exit_code_tells_of_regressions(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(result))
    for row in result["rows"]:
        row["end_to_end"]["p50"] *= 2
    new.write_text(json.dumps(result))
    assert _exit_code("benchmark", "--compare", str(old), str(new)) == 1
    assert "2.00" in capsys.readouterr().out
    assert _exit_code("benchmark", "--compare", str(new), str(old)) == 0
    old.write_text("{}")
    assert _exit_code("benchmark", "--compare", str(old), str(new)) == 3


def test_the_command_prints_json_alone_on_stdout(
    model: Path, photo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blu_export.benchmark.settings.QUICK", BRIEF)
    code = _exit_code(
        "benchmark",
        str(model),
        "--runtime",
        "onnxruntime",
        "--photo",
        str(photo),
        "--quick",
        "--repeats",
        "1",
        "--json",
    )
    captured = capsys.readouterr()
    assert code == 0
    assert {row["runtime"] for row in json.loads(captured.out)["rows"]} == {"onnxruntime"}
    assert "round 1 of" in captured.err
    assert _exit_code("benchmark", str(model), "--runtime", "tflite") == 2


def test_the_table_goes_between_its_marks(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(f"before\n{TABLE_STARTS}\nold\n{TABLE_ENDS}\nafter\n")
    for _ in range(2):
        insert_table(path, "| new |\n")
        assert path.read_text() == f"before\n{TABLE_STARTS}\n| new |\n{TABLE_ENDS}\nafter\n"
    path.write_text("nothing")
    with pytest.raises(UsageError, match="no place"):
        insert_table(path, "| new |\n")


def _exit_code(*arguments: str) -> int:
    try:
        main(list(arguments))
    except SystemExit as exit:
        return int(exit.code or 0)
    return 0


def test_settings_are_for_keras_weights(model: Path, tmp_path: Path) -> None:
    given = RunnerOptions(settings=("IMAGE_MAX_DIM=256",))
    with pytest.raises(UsageError, match="are for Keras weights"):
        candidates_of([model], given=given)
    (tmp_path / "mine.h5").write_bytes(b"")
    assert [each.runtime for each in candidates_of([tmp_path], given=given)] == ["keras tf.function"]
