"""``blu serve --ray`` on a real cluster of two nodes on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_runner import write_model
from loopback import HERE, gray
from ray_processes import mark, marked

pytest.importorskip("ray.serve", reason="needs the extra ray")

from blu_export.errors import UsageError
from blu_export.serve.ray_app import RaySettings, merge_metrics, parse_replicas

pytestmark = pytest.mark.xdist_group("ray")  # one cluster at a time

PATIENCE = 300
"""Seconds. A cluster that starts beside tests of full-size models has taken 50, and a replica 20."""
_mark = [""]
SERVE = """
import json, sys
from pathlib import Path
from blu_export.serve import ray_app
from blu_export.serve.logs import set_up
from blu_export.serve.settings import ServeSettings
given = json.loads(sys.argv[1])
address = given.pop("ray")
settings = ServeSettings(**{**given, "model": Path(given["model"]), "loader": "fake_runner:load"})
set_up()
ray_app.run(settings, ray_app.RaySettings(address, 2, 2))
"""


OTHER = """
import sys, ray
from ray import serve
ray.init(address=sys.argv[1], log_to_driver=False)
class Busy: pass
busy = ray.remote(num_cpus=1)(Busy).remote()
ray.get(busy.__ray_ready__.remote())
serve.start(http_options={"port": int(sys.argv[2])})
print("ready", flush=True)
sys.stdin.read()
serve.shutdown()
"""


def test_replicas_are_a_number_or_a_range() -> None:
    assert (parse_replicas("3"), parse_replicas("1-4")) == ((3, 3), (1, 4))
    for text in ("", "-", "a", "1-", "1-2-3", "1.5"):
        with pytest.raises(UsageError, match="is not a number of replicas"):
            parse_replicas(text)
    with pytest.raises(UsageError, match="is not a range"):
        RaySettings("auto", 4, 1)


def test_metrics_of_replicas_are_told_apart() -> None:
    text = (
        b'# HELP blu_requests_total Requests.\n# TYPE blu_requests_total counter\nblu_requests_total{route="/"} 3.0\n'
    )
    merged = merge_metrics([("a", text), ("b", text.replace(b"3.0", b"4.0"))]).decode()
    assert merged.count("# TYPE blu_requests_total counter") == 1
    assert re.findall(r'replica="(\w)"[^}]*} (\S+)', merged) == [("a", "3.0"), ("b", "4.0")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])))
        # On a machine full of tests Ray would take its own proxies for dead, and start others.
        patch.setenv("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
        patch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        _mark[:] = [mark(patch)]
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=1, include_dashboard=False)
            cluster.add_node(num_cpus=1)
            yield cluster
        finally:
            cluster.shutdown()


def replica_pids() -> list[int]:
    """Replicas of our cluster."""
    return ray_pids("ServeReplica:blu:")


def ray_pids(name: str) -> list[int]:
    """Actors of our cluster whose name starts so: Ray names their processes."""
    return list(marked(_mark[0], f"ray::{name}"))


def wait_until(holds: Callable[[], Any]) -> Any:
    until = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.2)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(cluster: Any) -> Iterator[Start]:
    """``start(model, port=…)``: the command as a process, which does not outlive the test."""
    started = []

    def start(model: Path, **settings: Any) -> subprocess.Popen[str]:
        given = json.dumps({"ray": cluster.address, "model": str(model), **settings})
        command = [sys.executable, "-c", SERVE, given]
        started.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, bufsize=1))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


@pytest.fixture
def crowded(cluster: Any) -> Iterator[int]:
    """Another program of the cluster takes a CPU and runs Ray Serve; the port of it."""
    port = free_port()
    command = [sys.executable, "-c", OTHER, cluster.address, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        # What a failed test left running may hold the cores that it waits for.
        impatient = threading.Timer(PATIENCE, process.kill)
        impatient.start()
        assert "ready\n" in process.stdout  # Ray may have something to say before
        impatient.cancel()
        yield port
        process.communicate("", timeout=PATIENCE)  # it shuts down at the end of its input


def test_two_replicas_one_killed_under_load(start: Start, tmp_path: Path) -> None:
    port = free_port()
    model = write_model(tmp_path / "fake.onnx", seconds=0.02)
    process = start(model, port=port, queue=8, max_upload=100_000)
    assert process.stderr is not None
    for line in process.stderr:
        if '"listening"' in line:
            break
    else:
        raise AssertionError("it ended")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as client:
        _check_service(client)
        assert ray_pids("ServeController") and ray_pids("ProxyActor")
        victim = wait_until(lambda: len(pids := replica_pids()) == 2 and pids)[0]
        stop = threading.Event()
        answers: list[tuple[float, int, bool]] = []

        def load(level: int) -> None:
            while not stop.is_set():
                answer = client.post("/v1/predict", content=gray(level))
                good = answer.status_code == 200 and _score(answer) == pytest.approx(level / 255, abs=1e-5)
                answers.append((time.monotonic(), answer.status_code, good))

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(load, 40 * (1 + index)) for index in range(4)]
            wait_until(lambda: len(answers) > 20)
            os.kill(victim, signal.SIGKILL)
            killed = time.monotonic()
            wait_until(lambda: victim not in (pids := replica_pids()) and len(pids) == 2)
            wait_until(lambda: _replicas_with_metrics(client) == 2)
            back = time.monotonic()
            wait_until(lambda: sum(when > back for when, _, _ in answers) > 20)
            stop.set()
            for each in running:
                each.result()
    wrong = [answer for answer in answers if answer[1] == 200 and not answer[2]]
    failed = [answer for answer in answers if answer[1] not in (200, 429)]
    assert not wrong
    # The victim takes what was inside it along: at most one photo per client, and only around its end.
    assert len(failed) <= 4 and all(killed - 1 <= when <= back for when, _, _ in failed)
    assert sum(good for when, _, good in answers if when > killed) > 20
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 0
    wait_until(lambda: not (replica_pids() or ray_pids("ServeController") or ray_pids("ProxyActor")))


@pytest.mark.long  # two replicas of their own serve each time
def test_a_cluster_that_others_use(crowded: int, start: Start, tmp_path: Path) -> None:
    """There, one replica starts and the other waits for room, and Ray Serve is not ours."""
    model = write_model(tmp_path / "fake.onnx")
    elsewhere = start(model, port=free_port())
    _, said = elsewhere.communicate(timeout=PATIENCE)
    assert elsewhere.returncode == 1 and f"on 127.0.0.1:{crowded} and not 127.0.0.1:" in said

    waiting = start(model, port=crowded)
    wait_until(replica_pids)
    waiting.send_signal(signal.SIGINT)
    _, said = waiting.communicate(timeout=PATIENCE)
    assert "KeyboardInterrupt" in said and '"listening"' not in said
    assert not replica_pids() and ray_pids("ServeController")

    model.write_text("no model")
    broken = start(model, port=crowded)
    _, said = broken.communicate(timeout=PATIENCE)
    assert broken.returncode == 1 and "The replicas do not start" in said
    assert not replica_pids() and ray_pids("ServeController")


def _check_service(client: httpx.Client) -> None:
    """The application and its limits are those of ``blu serve``."""
    answer = client.post("/v1/predict", content=gray(51))
    assert answer.status_code == 200 and _score(answer) == pytest.approx(0.2, abs=1e-5)
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/fake").json()["name"] == "fake"
    assert client.post("/v1/predict", content=b"no photo").status_code == 415
    assert client.post("/v1/predict", content=b"x" * 100_001).status_code == 413
    with ThreadPoolExecutor(60) as pool:
        burst = list(pool.map(lambda _: client.post("/v1/predict", content=gray(51)).status_code, range(60)))
    assert set(burst) == {200, 429}
    assert _replicas_with_metrics(client) == 2


def _replicas_with_metrics(client: httpx.Client) -> int:
    answer = client.get("/metrics")
    return len(set(re.findall(r'blu_ready{replica="([^"]+)"} 1.0', answer.text))) if answer.status_code == 200 else 0


def _score(answer: httpx.Response) -> float:
    return float(answer.json()["detections"][0]["score"])
