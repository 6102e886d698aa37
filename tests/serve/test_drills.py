"""Short forms of the drills of ``python -m benchmarks serve``, on real servers with the fake model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
from fake_runner import write_model
from loopback import HERE, gray

from benchmarks import serve_abuse, serve_attacks, serve_faults, serve_load, serve_report
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
    assert (found["statuses"], found["lost"]) == ([413], [])
    assert found["growth_mb"] < 100  # the smallest bomb is 265 MB


def test_slow_clients_cost_a_socket(target: Target) -> None:
    found = run(serve_abuse.slow_loris(target, 90, 1.0, head_timeout=1.0, timeout=2.0))
    assert set(found["statuses"]) == {"200"}
    assert found["growth_mb"] < 20
    assert found["all_closed"]


def test_an_attack_is_watched_from_all_sides(target: Target) -> None:
    attack = serve_attacks.ATTACKS["0.3 MB of JSON: a long string among the pixels"]
    found = run(serve_attacks.measure(target, attack))
    assert found["statuses"] == {"400": 1}
    assert found["health"]["failures"] == 0 and found["health"]["max_s"] > 0
    assert set(found["regular"]["statuses"]) == {"200"} and found["regular"]["wrong"] == 0
    assert found["peak_mb"] >= found["idle_mb"] > 10


CHILD = """
import json, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
def log(event): print(json.dumps({"event": event, "port": 0, "pid": os.getpid()}), file=sys.stderr, flush=True)
log("listening")
data = b"x" * (64 << 20)
log("allocated")
signal.sigtimedwait([signal.SIGUSR1], 60)
del data
log("freed")
signal.sigtimedwait([signal.SIGUSR1], 60)
"""


def test_the_peak_has_memory_that_a_child_gave_back() -> None:
    async def main() -> tuple[int, int]:
        watch, over = serve_attacks.Watch(), threading.Event()
        server = await ServerProcess.start(["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", CHILD])
        sampling = asyncio.create_task(asyncio.to_thread(serve_attacks.sample_memory, server, watch, over))
        child = (await server.wait_for("allocated"))["pid"]
        while watch.peak < 64 << 20:
            await asyncio.sleep(0.01)
        os.kill(child, signal.SIGUSR1)
        await server.wait_for("freed")
        now = server.total_memory()
        over.set()
        await sampling
        os.kill(child, signal.SIGUSR1)
        await server.process.wait()
        return watch.peak, now

    peak, now = asyncio.run(main())
    assert peak - now > 60 << 20


def test_a_server_may_be_started_with_few_open_files() -> None:
    async def main() -> int:
        report = 'echo "{\\"event\\": \\"listening\\", \\"port\\": $(ulimit -Hn)}" >&2'
        server = await ServerProcess.start(["sh", "-c", report], open_files=123)
        await server.stop(0)
        return server.port

    assert asyncio.run(main()) == 123


def test_memory_stays(target: Target) -> None:
    found = run(serve_load.soak(target, 5.0))
    assert set(found["statuses"]) <= {"200", "429"}
    assert found["growth"]["server"] < 0.1


def test_results_go_between_the_marks_of_the_docs(tmp_path: Path) -> None:
    docs = tmp_path / "serve.md"
    docs.write_text(f"before\n{serve_report.MARK}\nold\n{serve_report.MARK_END}\nafter\n")
    result = _result({"kill": {"statuses": {"200": 3}, "wrong": 0}})
    serve_report.update_docs(result, docs)
    text = docs.read_text()
    assert text.startswith(f"before\n{serve_report.MARK}\nModel `m.onnx`")
    assert "| kill | statuses 200: 3; wrong 0 |" in text and "old" not in text
    assert text.endswith(f"{serve_report.MARK_END}\nafter\n")
    earlier = tmp_path / "serve.json"
    earlier.write_text(json.dumps(result))
    assert _kept(result | {"scenarios": {"hang": {}}}, earlier) == {"kill", "hang"}
    assert _kept(result | {"sha256": "f", "scenarios": {"hang": {}}}, earlier) == {"hang"}
    other = {"processor": "P", "cores": 2, "memory_gib": 23.6}
    assert _kept(result | {"machine": other, "scenarios": {"hang": {}}}, earlier) == {"kill", "hang"}
    assert _kept(result | {"machine": other | {"cores": 4}, "scenarios": {"hang": {}}}, earlier) == {"hang"}


def test_only_what_was_measured_is_replaced_in_the_docs(tmp_path: Path) -> None:
    docs = tmp_path / "serve.md"
    docs.write_text(
        f"a\n{serve_report.ATTACKS_MARK}\nold attacks\n{serve_report.ATTACKS_END}\n"
        f"b\n{serve_report.MARK}\nold scenarios\n{serve_report.MARK_END}\nc\n"
    )
    watched = {"health": {"max_s": 0.04, "failures": 0}, "idle_mb": 220, "peak_mb": 1063}
    fine = {"statuses": {"200": 3}, "max_s": 0.5, "wrong": 0}
    attacks = {
        "JPEG of 4 million markers, 16 MB, twice": watched
        | {"statuses": {"422": 2}, "max_s": 1.25, "regular": fine, "exit_s": 3.7, "exit_code": 0},
        "answers of 100 MB over gRPC that no one reads": watched
        | {"statuses": {"RESOURCE_EXHAUSTED": 18, "unread": 2}, "max_s": None, "server_later_mb": 84}
        | {"regular": {"statuses": {"200": 2, "429": 1}, "max_s": 8.0, "wrong": 1}, "grpc": fine, "log_kb": 1.5},
    }
    result = _result({"attacks": attacks})
    serve_report.update_docs(result, docs)
    text = docs.read_text()
    assert "old attacks" not in text and "old scenarios" in text
    assert text.startswith(f"a\n{serve_report.ATTACKS_MARK}\nWhat hostile clients do to `m.onnx` on P, 2 cores")
    assert (
        "| JPEG of 4 million markers, 16 MB, twice | 504 after 30 s; 671 MB; a regular photo 504 | all 422 "
        "within 1.2 s; 1,063 MB; health 0.04 s; regular photos all 200 within 0.50 s; SIGTERM takes 3.7 s, "
        "exit code 0 |\n" in text
    )
    assert (
        "| RESOURCE_EXHAUSTED: 18, unread: 2; 1,063 MB; health 0.04 s; regular photos 200: 2, 429: 1 within 8.0 s, "
        "1 wrong; photos over gRPC all 200 within 0.50 s; 84 MB in the server 35 s after the clients left; "
        "1.5 kB of log in 4 s |\n" in text
    )
    assert serve_report.markdown(result) == serve_report.attacks_table(result)
    serve_report.update_docs(result | {"scenarios": {"kill": {"wrong": 0}}}, docs)
    assert "old scenarios" not in docs.read_text() and "JPEG of 4 million markers" in docs.read_text()


def test_the_docs_have_a_place_for_each_table_and_a_figure_from_before_for_each_attack() -> None:
    text = serve_report.DOCS.read_text()
    for mark in (serve_report.MARK, serve_report.MARK_END, serve_report.ATTACKS_MARK, serve_report.ATTACKS_END):
        assert text.count(mark) == 1
    assert serve_report.BEFORE.keys() == serve_attacks.ATTACKS.keys()


def _result(scenarios: dict[str, Any]) -> dict[str, Any]:
    """Of a run that measured these."""
    return {
        "model": "m.onnx",
        "sha256": "0123456789abcdef",
        "machine": {"processor": "P", "cores": 2},
        "quick": False,
        "unloaded_s": 0.5,
        "photos_per_s": 2.0,
        "scenarios": scenarios,
    }


def _kept(new: dict[str, Any], earlier: Path) -> set[str]:
    return set(serve_report.merged(new, earlier)["scenarios"])
