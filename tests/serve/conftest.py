"""Fixtures of servers; what they are made of is in loopback.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")


from loopback import Running, Start, launching


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """``launch(seconds=…, shift=…, spec={…}, **settings)``: a server with the fake model, for one test."""
    with launching(tmp_path_factory.mktemp("models")) as start:
        yield start


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with launching(tmp_path_factory.mktemp("models")) as start:
        yield start(grpc_port=0, max_upload=300_000, max_pixels=1_000_000, max_json=200_000)


@pytest.fixture
def client(shared_server: Running) -> Iterator[httpx.Client]:
    with shared_server.client() as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra dev")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("needs Chromium on PATH")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The server whose page is looked at: it shows doubtful detections too."""
    with launching(tmp_path_factory.mktemp("models")) as start:
        yield start(spec={"detection_min_confidence": 0.2})
