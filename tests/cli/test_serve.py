"""``blu serve`` as it is typed: options, warnings, errors, and one real server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import PATIENCE, Running, png
from typer.testing import CliRunner, Result

from blu_export.cli import main as cli
from blu_export.errors import MissingDependencyError, ModelFileError, UsageError
from blu_export.extras import install_command
from blu_export.serve.settings import ServeSettings


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ServeSettings]:
    """What servers were started with; none is."""
    found: list[ServeSettings] = []
    monkeypatch.setattr("blu_export.serve.server.run", lambda settings, hangups: found.append(settings))
    monkeypatch.setattr("blu_export.serve.hangups.Hangups", lambda: None)  # the signal stays the tests'
    monkeypatch.setattr("blu_export.serve.logs.set_up", lambda: None)
    return found


def serve(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["serve", *map(str, arguments)])


def test_options_become_settings(started: list[ServeSettings], tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("0123456789abcdef\n")
    options = "--port 9000 --max-batch 8 --batch-delay-ms 5 --queue 10 --timeout 7 --max-upload 1 --max-pixels 2"
    result = serve("m.onnx", *options.split(), "--reload", "--grpc-port", 9001, "--api-key-file", keys)
    assert (result.exit_code, result.stderr) == (0, "")
    (settings,) = started
    assert (settings.model, settings.port, settings.grpc_port) == (Path("m.onnx"), 9000, 9001)
    assert (settings.max_batch, settings.batch_delay, settings.queue, settings.timeout) == (8, 0.005, 10, 7.0)
    assert (settings.max_upload, settings.max_pixels) == (2**20, 2_000_000)
    assert (settings.reload, settings.api_keys) == (True, ("0123456789abcdef",))


@pytest.mark.parametrize(
    "options",
    [
        *("--max-upload inf", "--max-upload nan", "--max-upload 1e9", "--max-pixels inf", "--max-pixels 1e9"),
        *("--max-batch 1000000000", "--queue 1000000000", "--timeout inf", "--timeout nan", "--batch-delay-ms nan"),
        *("--notice inf", "--max-wait nan", "--cors example.org", "--cors https://a.example/page"),
    ],
)
def test_options_that_cannot_be_meant(started: list[ServeSettings], options: str) -> None:
    result = serve("m.onnx", *options.split())
    assert started == []
    assert result.exit_code == 2 or isinstance(result.exception, UsageError), result.output


@pytest.mark.parametrize(
    ("host", "warned"),
    [
        ("127.0.0.1", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("a.example", True),
    ],
)
def test_a_warning_beyond_loopback_without_keys(started: list[ServeSettings], host: str, warned: bool) -> None:
    result = serve("m.onnx", "--host", host)
    assert ("anyone who reaches" in result.stderr.replace("\n", " ")) is warned
    assert started


def test_no_warning_with_keys(started: list[ServeSettings], tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    assert "warning" not in serve("m.onnx", "--host", "0.0.0.0", "--api-key-file", tmp_path / "keys").stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("m.onnx", "--timeout", "0"),
        ("m.onnx", "--max-wait", "-1"),
        ("m.onnx", "--api-key-file", "no-such-file"),
    ],
)
def test_what_cannot_be_served(started: list[ServeSettings], arguments: tuple[str, ...]) -> None:
    result = serve(*arguments)
    assert isinstance(result.exception, UsageError)
    assert not started


def test_a_file_that_is_not_a_model(started: list[ServeSettings]) -> None:
    result = serve("m.txt")
    assert isinstance(result.exception, ModelFileError)
    assert (result.exception.exit_code, started) == (3, [])


def test_a_key_file_that_is_not_there(started: list[ServeSettings]) -> None:
    error = serve("m.onnx", "--api-key-file", "nokeys").exception
    assert str(error).startswith("The key file nokeys cannot be read: No such file or directory.")


def test_missing_packages_are_named(started: list[ServeSettings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)
    assert serve("m.onnx").exit_code == 0
    result = serve("m.onnx", "--grpc-port", 0)
    assert isinstance(result.exception, MissingDependencyError)
    assert install_command("serve") in str(result.exception)


def run_blu(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "blu_export", "serve", *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"})


def test_a_real_server(fake_onnx: Callable[..., Path]) -> None:
    server = Running(run_blu(fake_onnx(), "--port", 0, "--notice", 0, "--threads", 1), Path())
    reader = threading.Thread(target=server.read_log)
    reader.start()
    try:
        server.port = server.wait_for("listening")["port"]
        found = server.post(png(height=64, width=64)).json()
        assert [each["score"] for each in found["detections"]] == pytest.approx([0.2, 0.1], abs=1e-5)
        with server.client() as client:
            assert client.get("/").text.startswith("<!doctype html>")
    finally:
        assert server.stop(signal.SIGTERM) == 0
        reader.join(PATIENCE)


def test_a_port_that_is_taken(fake_onnx: Callable[..., Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = run_blu(fake_onnx(), "--port", port)
        _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert f"127.0.0.1:{port}" in error.decode().replace("\n", "")
    assert "--port" in error.decode()
