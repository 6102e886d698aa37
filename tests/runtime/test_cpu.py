"""Cores in containers, on hyper-threaded machines and elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from blu_export.errors import UsageError
from blu_export.runtime.cpu import VARIABLE, usable_cores


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def eight_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four cores with two hyper-threads each, all allowed: the topology folder."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for cpu in range(8):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def test_hyper_threads_count_once(eight_threads: Path, tmp_path: Path) -> None:
    assert usable_cores(tmp_path / "no-cgroup", eight_threads) == 4


def test_affinity_counts(eight_threads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 4, 1}, raising=False)
    assert usable_cores(tmp_path / "no-cgroup", eight_threads) == 2


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("150000 100000", 2), ("20000 100000", 1), ("max 100000", 4), ("junk", 4), ("900000 100000", 4)],
)
def test_cgroup_v2_quota(eight_threads: Path, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert usable_cores(tmp_path, eight_threads) == cores


@pytest.mark.parametrize(("quota", "cores"), [("300000", 3), ("-1", 4)])
def test_cgroup_v1_quota(eight_threads: Path, tmp_path: Path, quota: str, cores: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert usable_cores(tmp_path, eight_threads) == cores


def test_unknown_topology_counts_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert usable_cores(tmp_path, tmp_path) == 3


def test_the_user_knows_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "7")
    assert usable_cores() == 7
    for wrong in ("0", "-1", "two", "", "1.5"):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(UsageError, match="is not a number of cores"):
            usable_cores()
