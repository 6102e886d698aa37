"""How a server ends, survives its worker, and takes over a new model; and what its log says of it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fake_runner import CRASH, HANG, REFUSE, write_model
from loopback import PATIENCE, Running, Start, gray, metric, png, until


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def score(answer: httpx.Response) -> float:
    assert answer.status_code == 200, answer.text
    return float(answer.json()["detections"][0]["score"])


def send_and_hold(server: Running, pool: ThreadPoolExecutor, body: bytes) -> Future[httpx.Response]:
    """A request that is inside the server, whose device stands still."""
    server.pause()
    waiting = pool.submit(server.post, body)
    with server.client() as client:
        until(lambda: metric(client, "blu_photos_inside") == 1)
    return waiting


def test_sigterm_finishes_what_is_inside(launch: Start, pool: ThreadPoolExecutor) -> None:
    server = launch()
    waiting = send_and_hold(server, pool, gray(51))
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("stopping")
    with server.client() as client:
        ready = client.get("/v2/health/ready")
        assert (ready.status_code, ready.json()) == (503, {"ready": False})
        assert client.get("/v2/health/live").status_code == 200
        until(lambda: client.post("/v1/predict", content=gray(51)).status_code == 503)
        server.resume()
    assert score(waiting.result()) == pytest.approx(0.2, abs=1e-6)
    assert server.process.wait(PATIENCE) == 0
    server.wait_for("stopped")


def test_during_the_notice_work_is_still_taken(launch: Start) -> None:
    server = launch(notice=1.0)
    with server.client() as client:
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        assert client.get("/v2/health/ready").status_code == 503
        assert score(client.post("/v1/predict", content=gray(51))) == pytest.approx(0.2, abs=1e-6)
    assert server.process.wait(PATIENCE) == 0


def test_sigint_is_exit_130(launch: Start) -> None:
    assert launch().stop(signal.SIGINT) == 130


@pytest.mark.parametrize("again", [True, False], ids=["second signal", "drain is over"])
def test_an_end_that_does_not_wait_for_a_stuck_device(launch: Start, pool: ThreadPoolExecutor, again: bool) -> None:
    server = launch(drain=PATIENCE if again else 0.2)
    waiting = send_and_hold(server, pool, gray(51))
    server.process.send_signal(signal.SIGTERM)
    server.wait_for("stopping")
    if again:
        server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(PATIENCE) == 0
    with pytest.raises(ProcessLookupError):  # the worker went along
        os.kill(server.workers[-1], 0)
    with contextlib.suppress(httpx.TransportError):
        assert waiting.result().status_code >= 500


def test_a_photo_that_kills_the_worker_fails_and_the_next_ones_work(launch: Start) -> None:
    server = launch()
    deadly = server.post(png(CRASH))
    assert (deadly.status_code, deadly.json()["error"]["code"]) == (500, "worker_failed")
    for _ in "12":
        server.wait_for("worker restarted")
    assert score(server.post(gray(51))) == pytest.approx(0.2, abs=1e-6)
    with server.client() as client:
        assert 'blu_worker_restarts_total{reason="crash"} 2.0' in client.get("/metrics").text  # tried twice
    assert len(server.workers) == 3


def test_a_photo_that_hangs_the_worker_runs_into_its_deadline(launch: Start) -> None:
    server = launch(timeout=3.0)
    assert server.post(png(HANG)).status_code == 504
    server.wait_for("worker restarted")
    assert score(server.post(gray(51))) == pytest.approx(0.2, abs=1e-6)
    with server.client() as client:
        assert 'blu_worker_restarts_total{reason="hang"} 1.0' in client.get("/metrics").text


def test_a_photo_that_the_runtime_refuses_costs_no_worker(launch: Start) -> None:
    server = launch()
    refused = server.post(png(REFUSE))
    assert (refused.status_code, "refuses this photo" in refused.json()["error"]["message"]) == (500, True)
    assert score(server.post(gray(51))) == pytest.approx(0.2, abs=1e-6)
    assert len(server.workers) == 1


def test_a_worker_that_is_killed_from_outside_costs_no_request(launch: Start, pool: ThreadPoolExecutor) -> None:
    server = launch()
    waiting = send_and_hold(server, pool, gray(51))
    os.kill(server.workers[-1], signal.SIGKILL)
    assert score(waiting.result()) == pytest.approx(0.2, abs=1e-6)


def test_sighup_takes_over_a_new_model_while_old_work_ends_on_the_old(launch: Start, pool: ThreadPoolExecutor) -> None:
    server = launch()
    waiting = send_and_hold(server, pool, gray(51))
    with server.client() as client:
        old = client.get("/v1/model").json()["sha256"]
        write_model(server.model, shift=51)
        server.process.send_signal(signal.SIGHUP)
        new = server.wait_for("model ready")
        assert new["sha256"] != old
        assert client.get("/v1/model").json()["sha256"] == new["sha256"]
        assert f'sha256="{new["sha256"]}"' in client.get("/metrics").text
        assert score(client.post("/v1/predict", content=gray(51))) == pytest.approx(0.4, abs=1e-6)
        os.kill(server.workers[0], signal.SIGCONT)
        assert score(waiting.result()) == pytest.approx(0.2, abs=1e-6)
    assert server.stop() == 0


def test_many_hangups_are_one_reload_and_those_of_the_start_are_kept(launch: Start, tmp_path: Path) -> None:
    model = write_model(tmp_path / "fake.onnx")
    server = launch(model=model, hangups_at_start=3)  # it sends itself some while it loads the model
    server.wait_for("model ready")
    with server.client() as client:
        until(lambda: 'blu_reloads_total{result="done"} 1.0' in client.get("/metrics").text)
        write_model(model, shift=51)
        for _ in range(20):
            server.process.send_signal(signal.SIGHUP)
        server.wait_for("model ready")
        assert score(client.post("/v1/predict", content=gray(51))) == pytest.approx(0.4, abs=1e-6)
        assert server.stop() == 0
    assert len([line for line in server.lines if line["event"] == "model ready"]) == 3


def test_reload_watches_the_file_and_keeps_the_model_if_the_new_one_is_broken(launch: Start, tmp_path: Path) -> None:
    server = launch(reload=True)
    (tmp_path / "broken").write_text("not a model")
    (tmp_path / "broken").replace(server.model)
    refused = server.wait_for("reload refused")
    assert "not a fake model" in refused["why"]
    assert score(server.post(gray(51))) == pytest.approx(0.2, abs=1e-6)
    write_model(server.model, shift=51)
    server.wait_for("model ready")
    assert score(server.post(gray(51))) == pytest.approx(0.4, abs=1e-6)


@pytest.mark.parametrize("content", ["broken, refused", "good, not yet asked for"])
def test_a_new_worker_has_the_old_model_even_if_the_file_was_replaced(launch: Start, content: str) -> None:
    server = launch()
    with server.client() as client:
        served = client.get("/v1/model").json()
        if content.startswith("broken"):
            server.model.write_text("not a model")  # over the old one: also what shares its inode is lost
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("reload refused")
        else:
            write_model(server.model, shift=51)
        for _ in "12":
            os.kill(server.workers[-1], signal.SIGKILL)
            server.wait_for("worker restarted")
            assert score(client.post("/v1/predict", content=gray(51))) == pytest.approx(0.2, abs=1e-6)
        assert client.get("/v1/model").json() == served
        write_model(server.model, shift=102)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("model ready")
        os.kill(server.workers[-1], signal.SIGKILL)
        server.wait_for("worker restarted")
        assert score(client.post("/v1/predict", content=gray(51))) == pytest.approx(0.6, abs=1e-6)


def test_a_server_does_not_start_with_a_model_that_does_not_load(launch: Start, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_text("not a model")
    with pytest.raises(AssertionError, match="not a fake model"):
        launch(model=tmp_path / "broken.onnx")


def test_the_log_is_json_with_request_ids(launch: Start) -> None:
    server = launch()
    server.post(png(CRASH), **{"x-request-id": "deadly-1"})
    server.post(gray(51), **{"x-request-id": "fine-1"})
    assert server.stop() == 0
    lines = {line.get("request_id"): line for line in server.lines if line["event"] == "request"}
    assert (lines["deadly-1"]["status"], lines["fine-1"]["status"]) == (500, 200)
    assert all({"time", "level", "logger", "event"} <= set(line) for line in server.lines)
    events = [line["event"] for line in server.lines]
    assert events.index("model ready") < events.index("listening") < events.index("worker lost")
    assert events[-2:] == ["stopping", "stopped"]
