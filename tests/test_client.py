"""The client: answers are those of the detector, a busy server is asked again when it says so, errors tell."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="needs the extra client")

from fake_runner import FakeRunner
from loopback import Running, gray, launching, png

from blu_export import client as module
from blu_export.client import AsyncClient, Client, ServerError
from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.errors import ImageError, UsageError

KEY = "0123456789abcdef0123"
EXAMPLE = Path(__file__).parents[1] / "examples" / "client.py"
FOUND = {
    "image": {"height": 4, "width": 6},
    "classes": ["coat"],
    "detections": [
        {"class": "coat", "class_id": 1, "score": 0.5, "box": [0, 0, 4, 6], "mask": {"size": [4, 6], "counts": "0h0"}}
    ],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with launching(tmp_path_factory.mktemp("models")) as start:
        yield start(api_keys=[KEY])


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the clients would have slept."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr(module.time, "sleep", found.append)
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return found


Scripted = tuple[int, dict[str, str], Any]


@pytest.fixture
def scripted() -> Iterator[tuple[str, list[Scripted]]]:
    """(URL, answers): a server that gives these answers, one after the other."""
    answers: list[Scripted] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status, headers, body = answers.pop(0)
            if status == 0:
                self.close_connection = True
                return
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}", answers
        http.shutdown()
        thread.join()


def predict(kind: str, url: str, photo: Any, api_key: str | None = None, retries: int = 4, **wanted: Any) -> Detections:
    """By either client."""
    if kind == "sync":
        with Client(url, api_key, retries=retries) as client:
            return client.predict(photo, **wanted)

    async def ask() -> Detections:
        async with AsyncClient(url, api_key, retries=retries) as client:
            return await client.predict(photo, **wanted)

    return asyncio.run(ask())


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


@BOTH
def test_photos_of_any_form_give_the_same_detections(server: Running, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(gray(102))
    for photo in (gray(102), path, str(path), np.full((48, 64, 3), 102, np.uint8)):
        found = predict(kind, server.url, photo, KEY)
        assert found.image_size == (48, 64)
        assert found.scores == pytest.approx([0.4, 0.2], abs=1e-6)
        assert found.rois.tolist() == [[0, 0, 48, 64], [0, 0, 24, 32]]
        assert [crop.shape for crop in found.crops] == [(48, 64), (24, 32)]
    name = found.class_names[2]
    assert len(predict(kind, server.url, gray(102), KEY, min_score=0.3)) == 1
    assert predict(kind, server.url, gray(102), KEY, classes=[name, 2]).class_ids.tolist() == [2]


@BOTH
def test_tiles_are_asked_for(server: Running, kind: str, pauses: list[float]) -> None:
    found = predict(kind, server.url, png((102, 102, 102), 96, 64), KEY, tile=64, overlap=0.5)
    expected = Detector(FakeRunner(str(server.model)))(png((102, 102, 102), 96, 64), tile=64, overlap=0.5)
    assert found.rois.tolist() == expected.rois.tolist()
    assert len(found) > len(predict(kind, server.url, png((102, 102, 102), 96, 64), KEY))
    with pytest.raises(ServerError, match="overlap, but no tile") as caught:
        predict(kind, server.url, gray(102), KEY, overlap=0.5)
    assert caught.value.status == 400


@BOTH
def test_errors_are_the_servers(server: Running, kind: str, pauses: list[float]) -> None:
    for photo, key, status, code in ((b"no photo", KEY, 415, "unsupported_type"), (gray(1), "no", 401, "unauthorized")):
        with pytest.raises(ServerError) as caught:
            predict(kind, server.url, photo, key)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert caught.value.fix and caught.value.request_id
    with pytest.raises(ImageError, match=r"none\.jpg"):
        predict(kind, server.url, "none.jpg", KEY)
    with pytest.raises(UsageError, match="uint8"):
        predict(kind, server.url, np.zeros((4, 4)), KEY)
    with pytest.raises(UsageError, match="not the URL"):
        predict(kind, "localhost:8000", gray(1))
    assert pauses == []


@BOTH
def test_the_model_and_readiness(server: Running, kind: str) -> None:
    if kind == "sync":
        with Client(server.url, KEY) as client, Client("http://127.0.0.1:9") as unreachable:
            model, ready = client.model(), (client.ready(), unreachable.ready())
    else:

        async def ask() -> Any:
            async with AsyncClient(server.url, KEY) as client, AsyncClient("http://127.0.0.1:9") as unreachable:
                return await client.model(), (await client.ready(), await unreachable.ready())

        model, ready = asyncio.run(ask())
    assert (model["name"], ready) == ("fake", (True, False))


@BOTH
def test_a_busy_server_is_asked_again_when_it_says(
    scripted: tuple[str, list[Scripted]], kind: str, pauses: list[float]
) -> None:
    url, answers = scripted
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    busy = {"error": {"code": "busy", "message": "Busy.", "fix": "Wait."}}
    answers += [
        (429, {"Retry-After": "7"}, busy),
        (503, {"Retry-After": later}, busy),
        (429, {"Retry-After": "99999"}, busy),
    ]
    answers += [(0, {}, b""), (200, {}, FOUND)]
    assert len(predict(kind, url, gray(1))) == 1
    assert answers == []
    assert pauses[0] == 7 and 15 < pauses[1] <= 20 and pauses[2] == module.LONGEST_PAUSE
    assert 0 < pauses[3] <= module.FIRST_PAUSE * 8


@BOTH
def test_it_gives_up_at_last(scripted: tuple[str, list[Scripted]], kind: str, pauses: list[float]) -> None:
    url, answers = scripted
    answers += [(429, {}, {"error": {"code": "busy", "message": "Busy.", "fix": "Wait."}})] * 3
    with pytest.raises(ServerError, match=r"Busy\. Wait\.") as caught:
        predict(kind, url, gray(1), retries=2)
    assert (caught.value.status, len(pauses), answers) == (429, 2, [])
    answers += [(0, {}, b"")] * 2
    with pytest.raises(ServerError, match="does not answer") as caught:
        predict(kind, url, gray(1), retries=1)
    assert caught.value.status == 0


@BOTH
@pytest.mark.parametrize(
    ("status", "body"),
    [(502, b"<html>"), (200, b"<html>"), (404, []), (500, {"error": None}), (200, {"image": 1}), (200, [])],
)
def test_answers_that_are_not_ours(scripted: tuple[str, list[Scripted]], kind: str, status: int, body: Any) -> None:
    url, answers = scripted
    answers.append((status, {}, body))
    with pytest.raises(ServerError, match=r"not from blu serve|not one of /v1/predict"):
        predict(kind, url, gray(1))


def test_the_example(server: Running, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(gray(102))

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, EXAMPLE, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={"BLU_API_KEY": KEY})

    good = run(photo, photo, "--url", server.url)
    assert (good.returncode, good.stderr, len(good.stdout.splitlines())) == (0, "", 4)
    bad = run(tmp_path / "none.png", "--url", server.url)
    assert (bad.returncode, bad.stdout) == (1, "")
    assert bad.stderr.startswith("error: ") and bad.stderr.count("\n") == 1
