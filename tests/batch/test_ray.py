"""Jobs on a real Ray cluster of two nodes on loopback."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batch_jobs import PATIENCE, check_levels, rows, start
from fake_runner import CRASH, write_model
from ray_processes import mark, marked

pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time

FAKES = Path(__file__).parents[1] / "support"
LEVELS = list(range(10, 250, 10))
_mark = [""]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head node without CPUs, and two nodes with one each."""
    pytest.importorskip("ray", reason="needs the extra ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(FAKES), os.environ.get("PYTHONPATH")])))
        _mark[:] = [mark(patch)]
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False)
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def workers() -> dict[int, int]:
    """Worker processes of batch jobs on our cluster -> the processes that own them."""
    return marked(_mark[0], "blu_export.batch.worker")


def wait_until(holds: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.1)
    return found


def test_killed_drivers_actors_and_nodes_cost_no_photo(
    cluster: Any, photos: Callable[..., Path], tmp_path: Path
) -> None:
    folder, sink = photos(*LEVELS), tmp_path / "found"
    settings = {
        "source": folder,
        "sink": sink,
        "model": write_model(tmp_path / "slow.onnx", seconds=0.1),
        "shard_size": 3,
        "ray": cluster.address,
    }

    def finished() -> int:
        return len(list(sink.glob("part-*.parquet")))

    driver = start(**settings)
    wait_until(lambda: finished() >= 2)
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    wait_until(lambda: not workers())  # Ray ends what was the driver's
    before = finished()
    assert 2 <= before < 8

    driver = start(**settings)
    owned = wait_until(workers)
    os.kill(next(iter(owned)), signal.SIGKILL)  # the process that holds the model
    wait_until(lambda: finished() > before)
    os.kill(next(iter(wait_until(workers).values())), signal.SIGKILL)  # Ray's actor
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0
    report = json.loads(out.splitlines()[-1])
    assert (report["ran"], report["photos"], report["failed"]) == (24 - 3 * before, 24, 0)
    assert report["workers"] == 2
    check_levels(sink, folder, LEVELS)


@pytest.mark.long  # drivers and actors are killed each time
def test_a_lost_node_and_a_bad_photo(cluster: Any, photos: Callable[..., Path], tmp_path: Path) -> None:
    folder, sink = photos(*LEVELS, CRASH), tmp_path / "found"
    extra = cluster.add_node(num_cpus=1)
    driver = start(
        source=folder,
        sink=sink,
        model=write_model(tmp_path / "slow.onnx", seconds=0.1),
        shard_size=5,
        ray=cluster.address,
        workers=3,
    )
    wait_until(lambda: len(workers()) == 3)
    cluster.remove_node(extra, allow_graceful=False)
    out, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0
    assert json.loads(out)["failed"] == 1  # all of stdout: nothing of Ray's
    found = rows(sink)
    assert [path for path, row in found.items() if row["error"]] == [str(folder / "24.png")]
    for index, level in enumerate(LEVELS):
        (first, _) = found[str(folder / f"{index:02d}.png")]["detections"]
        assert first["score"] == pytest.approx(level / 255, abs=1e-6)
