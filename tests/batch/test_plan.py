"""The plan: fixed once, only added to."""

from __future__ import annotations

from pathlib import Path

import pytest

from blu_export.batch.plan import PLAN_NAME, Plan, open_plan
from blu_export.batch.sink import Sink
from blu_export.errors import DatasetError, UsageError
from blu_export.tiles import Tiling


def test_photos_are_added_in_shards_of_their_own() -> None:
    plan = Plan("hash", 0.0).extended(list("abcde"), 2)
    assert [shard.photos for shard in plan.shards] == [("a", "b"), ("c", "d"), ("e",)]
    more = plan.extended(list("xebay"), 3)
    assert more.shards[:3] == plan.shards
    assert [shard.photos for shard in more.shards[3:]] == [("x", "y")]
    assert more.extended(list("ab"), 1) == more
    assert more.shards[3].name == "part-00003.parquet"


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path / "found"))
    plan, new = open_plan(sink, Plan("hash", 0.5), list("abc"), 2)
    assert new == 3
    assert Plan.read(sink) == plan
    assert open_plan(sink, Plan("hash", 0.5), list("ab"), 99) == (plan, 0)
    again, new = open_plan(sink, Plan("hash", 0.5), list("abcd"), 99)
    assert (new, again.ends) == (1, (2, 3, 4))


def test_another_job_is_not_mixed_in(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path))
    open_plan(sink, Plan("hash", 0.5), ["a"], 2)
    (tmp_path / "part-00000.parquet").touch()
    with pytest.raises(UsageError, match="another model"):
        open_plan(sink, Plan("other", 0.5), ["a"], 2)
    with pytest.raises(UsageError, match="scores of at least 0.5, not 0.0"):
        open_plan(sink, Plan("hash", 0.0), ["a"], 2)
    with pytest.raises(UsageError, match="without tiles, not with --tile 64 --overlap 0.2"):
        open_plan(sink, Plan("hash", 0.5, tiling=Tiling(64)), ["a"], 2)


def test_a_plan_of_which_nothing_came_makes_way(tmp_path: Path) -> None:
    """A model that could not be loaded, say: the right one goes to the same folder then."""
    sink = Sink(str(tmp_path))
    open_plan(sink, Plan("broken", 0.5), list("abc"), 2)
    plan, new = open_plan(sink, Plan("hash", 0.0), list("ab"), 1)
    assert (plan.model_sha256, plan.photos, plan.ends, new) == ("hash", ("a", "b"), (1, 2), 2)
    assert Plan.read(sink) == plan


def test_tiles_belong_to_a_plan(tmp_path: Path) -> None:
    sink = Sink(str(tmp_path))
    plan, _ = open_plan(sink, Plan("hash", 0.5, tiling=Tiling(64, 0.25)), ["a"], 2)
    assert Plan.read(sink) == plan and plan.tiling == Tiling(64, 0.25)
    assert open_plan(sink, Plan("hash", 0.5, tiling=Tiling(64, 0.25)), ["b"], 2)[0].tiling == plan.tiling
    (tmp_path / "part-00000.parquet").touch()
    for tiling in (None, Tiling(64), Tiling(128, 0.25)):
        with pytest.raises(UsageError, match=r"with --tile 64 --overlap 0\.25, not with"):
            open_plan(sink, Plan("hash", 0.5, tiling=tiling), ["a"], 2)


def test_a_plan_of_a_version_without_tiles_is_read(tmp_path: Path) -> None:
    text = '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [1]}'
    (tmp_path / PLAN_NAME).write_text(text)
    assert Plan.read(Sink(str(tmp_path))) == Plan("a", 0.0, ("a",), (1,), None)


def test_a_folder_of_other_parquet_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sales.parquet").touch()
    with pytest.raises(UsageError, match=r"holds sales\.parquet, which is not from blu batch"):
        open_plan(Sink(str(tmp_path)), Plan("hash", 0.0), ["a"], 2)
    assert [path.name for path in tmp_path.iterdir()] == ["sales.parquet"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"version": 9}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [2]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a", "b"], "ends": [2, 1, 2]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a", "b"], "ends": [-1, 2]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a", "a"], "ends": [2]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [1e400]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [true]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": "a", "ends": [1]}',
        '{"version": 1, "model_sha256": "a", "min_score": 0, "photos": [null], "ends": [1]}',
        '{"version": 1, "model_sha256": "a", "min_score": NaN, "photos": ["a"], "ends": [1]}',
        '{"version": 1, "model_sha256": "a", "min_score": "0", "photos": ["a"], "ends": [1]}',
        '{"version": 1, "model_sha256": null, "min_score": 0, "photos": ["a"], "ends": [1]}',
        '{"version": "1", "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [1]}',
        '{"version": 2, "model_sha256": "a", "min_score": 0, "photos": ["a"], "ends": [1], "tiling": 5}',
        '{"version": 2, "model_sha256": "a", "min_score": 0, "photos": [], "ends": [], "tiling": {"side": 1e9}}',
        '{"version": 2, "model_sha256": "a", "min_score": 0, "photos": [], "ends": [], '
        '"tiling": {"side": 3, "overlap": 0.2}}',
        '{"version": null, "photos": {}, "ends": {}}',
        "[" * 100_000,
        "9" * 5000,
        "null",
        "\N{ZERO WIDTH NO-BREAK SPACE}{}",
    ],
)
def test_damaged_plans_are_errors(tmp_path: Path, text: str) -> None:
    (tmp_path / PLAN_NAME).write_text(text)
    with pytest.raises(DatasetError, match=PLAN_NAME):
        Plan.read(Sink(str(tmp_path)))
