"""Short forms of the drills of ``python -m benchmarks serve``, on real servers with the fake model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from fake_runner import write_model
from loopback import HERE, gray

from benchmarks import serve_abuse, serve_faults, serve_load, serve_report
from benchmarks.loadgen import REFUSED, ServerProcess, exchange
from benchmarks.serve_target import Target

LEVELS = range(20, 240, 20)
"""Photos of these gray levels, which are their scores times 255, are sent."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "fake.onnx", seconds=0.02)


@pytest.fixture
def target(model: Path) -> Target:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))

    async def start(**settings: Any) -> ServerProcess:
        given = {"model": str(model), "port": 0, "notice": 0.0, "queue": 16, "head_timeout": 1.0} | settings
        command = [sys.executable, HERE / "serve_fake.py", json.dumps(given)]
        return await ServerProcess.start(command, {"PYTHONPATH": path})

    expected = [
        [
            {"class_id": 1, "score": level / 255, "box": [0, 0, 48, 64]},
            {"class_id": 2, "score": level / 510, "box": [0, 0, 24, 32]},
        ]
        for level in LEVELS
    ]
    return Target(start, [gray(level) for level in LEVELS], "fake", expected, rate=20.0, unloaded=0.03)


def run(drill: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    async def main() -> dict[str, Any]:
        return await drill

    found = asyncio.run(main())
    assert found.get("wrong", 0) == 0
    return found


def test_a_wrong_answer_would_be_noticed(target: Target) -> None:
    async def main() -> int:
        server = await target.start()
        try:
            replies = [await exchange(server.port, target.request(index)) for index in (1, 0)]
        finally:
            await server.stop(9)
        return target.wrong(replies)

    assert asyncio.run(main()) == 2


def test_steady_load(target: Target) -> None:
    assert run(serve_load.steady(target, 1.0))["statuses"] == {"200": 12}


def test_overload_gives_200_or_429_and_health_answers(target: Target) -> None:
    found = run(serve_load.overload(target, 2.0, times=10.0))
    assert set(found["statuses"]) == {"200", "429"}
    assert found["retry_after"] and found["health"]


def test_killed_workers_cost_no_request(target: Target) -> None:
    found = run(serve_faults.kill(target, 3.0, kills=2))
    assert set(found["statuses"]) <= {"200", "429"}


def test_a_hung_worker_costs_its_own_photo(target: Target) -> None:
    found = run(serve_faults.hang(target, timeout=3.0))
    assert found["stuck"]["status"] == 504
    assert found["after"] == {"status": 200, "right": True}


def test_sigterm_under_load_loses_nothing(target: Target) -> None:
    found = run(serve_faults.terminate(target, 2.0))
    assert found["ready_said_503_while_listening"]
    assert (found["exit_code"], found["lost"]) == (0, 0)
    assert set(found["statuses"]) <= {"200", "503", str(REFUSED)}


def test_reload_under_load_loses_nothing(target: Target) -> None:
    statuses = run(serve_faults.reload(target, 3.0, times=2))["statuses"]
    assert "200" in statuses
    assert set(statuses) <= {"200", "429"}  # 429 on a machine that is busy with other tests


def test_thirty_kinds_of_malformed_requests(target: Target) -> None:
    found = run(serve_abuse.abuse(target, 120))
    assert found["kinds"] == 30
    assert found["not_4xx"] == []
    assert set(found["good_photos"]["statuses"]) == {"200"}
    assert found["good_photos"]["wrong"] == 0


def test_decompression_bombs_are_refused_unopened(target: Target) -> None:
    found = run(serve_abuse.bombs(target, 4))
    assert found["statuses"] == [413]
    assert found["growth_mb"] < 100  # the smallest bomb is 265 MB


def test_slow_clients_cost_a_socket(target: Target) -> None:
    found = run(serve_abuse.slow_loris(target, 90, 1.0, head_timeout=1.0, timeout=2.0))
    assert set(found["statuses"]) == {"200"}
    assert found["growth_mb"] < 20
    assert found["all_closed"]


def test_memory_stays(target: Target) -> None:
    found = run(serve_load.soak(target, 5.0))
    assert set(found["statuses"]) <= {"200", "429"}
    assert found["growth"]["server"] < 0.1


def test_results_go_between_the_marks_of_the_docs(tmp_path: Path) -> None:
    docs = tmp_path / "serve.md"
    docs.write_text(f"before\n{serve_report.MARK}\nold\n{serve_report.MARK_END}\nafter\n")
    result: dict[str, Any] = {
        "model": "m.onnx",
        "sha256": "0123456789abcdef",
        "machine": {"processor": "P", "cores": 2},
        "quick": False,
        "unloaded_s": 0.5,
        "photos_per_s": 2.0,
        "scenarios": {"kill": {"statuses": {"200": 3}, "wrong": 0}},
    }
    serve_report.update_docs(result, docs)
    text = docs.read_text()
    assert text.startswith(f"before\n{serve_report.MARK}\nModel `m.onnx`")
    assert "| kill | statuses 200: 3; wrong 0 |" in text and "old" not in text
    assert text.endswith(f"{serve_report.MARK_END}\nafter\n")
    earlier = tmp_path / "serve.json"
    earlier.write_text(json.dumps(result))
    assert _kept(result | {"scenarios": {"hang": {}}}, earlier) == {"kill", "hang"}
    assert _kept(result | {"sha256": "f", "scenarios": {"hang": {}}}, earlier) == {"hang"}


def _kept(new: dict[str, Any], earlier: Path) -> set[str]:
    return set(serve_report.merged(new, earlier)["scenarios"])
