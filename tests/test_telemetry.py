"""Nothing is looked up on the network, and nothing is written to the home but our own cache."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from loopback import PATIENCE, Running, png

from blu_export import telemetry

FakeOnnx = Callable[..., Path]

DETECT = """
import sys, numpy, blu_export
for runtime in ("onnxruntime", "openvino"):
    found = blu_export.load(sys.argv[1], runtime=runtime)(numpy.full((48, 64, 3), 200, numpy.uint8))
    assert len(found) == 2
"""
TRACED = "trace=connect,sendto,sendmsg,sendmmsg"
ADDRESS = re.compile(r'sin6?_port=htons\((\d+)\).*?inet_(?:addr|pton)\((?:AF_INET6, )?"([^"]+)"')
LOOPBACK = ("127.", "::1", "::ffff:127.")


def traced(log: Path) -> list[str]:
    """The start of a command line that records system calls; the test skips where they cannot be recorded."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-qq", "-o", log, "true"], capture_output=True).returncode:
        pytest.skip("needs strace, and the right to trace")
    return [strace, "-f", "-qq", "-e", TRACED, "-o", os.fspath(log)]


def outside(log: Path) -> list[str]:
    """Addresses beyond this machine that were connected to or sent to: ``address:port``."""
    found = ADDRESS.findall(log.read_text(errors="replace"))
    return [f"{address}:{port}" for port, address in found if not address.startswith(LOOPBACK)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


def environment(home: Path) -> dict[str, str]:
    """That of a user who has set nothing."""
    ours = {*telemetry.SETTINGS, telemetry.EC2_METADATA, "BLU_CACHE", "XDG_CACHE_HOME", "CI", "KERAS_HOME"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"HOME": os.fspath(home), "NO_COLOR": "1"}


def written(home: Path) -> Iterator[str]:
    """Files and folders in a home that are not our cache's."""
    for path in home.rglob("*"):
        name = path.relative_to(home).as_posix()
        if name != ".cache" and not name.startswith(".cache/blu-export"):
            yield name


@pytest.mark.skipif(sys.platform == "win32", reason="the home is not where HOME says")
def test_detecting_sends_nothing_and_writes_nothing(fake_onnx: FakeOnnx, home: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", DETECT, os.fspath(fake_onnx())]
    subprocess.run(command, env=environment(home), check=True)
    assert not list(written(home))
    log = tmp_path / "calls"
    subprocess.run([*traced(log), *command], env=environment(home), check=True)
    assert not outside(log)
    assert not list(written(home))


def test_what_is_recorded_is_seen(tmp_path: Path) -> None:
    log = tmp_path / "calls"
    # Connecting a UDP socket sends nothing; the address is one kept for documentation.
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('192.0.2.7', 53))"
    subprocess.run([*traced(log), sys.executable, "-c", code], check=True)
    assert outside(log) == ["192.0.2.7:53"]


@pytest.mark.skipif(sys.platform == "win32", reason="the home is not where HOME says")
def test_a_server_contacts_no_other_host(fake_onnx: FakeOnnx, home: Path, tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    log = tmp_path / "calls"
    command = [*traced(log), sys.executable, "-m", "blu_export", "serve", os.fspath(fake_onnx()), "--port", "0"]
    process = subprocess.Popen([*command, "--notice", "0", "--threads", "1"], env=environment(home), stderr=-1)
    server = Running(process, Path())
    reader = threading.Thread(target=server.read_log)
    reader.start()
    try:
        server.port = server.wait_for("listening")["port"]
        assert len(server.post(png(height=64, width=64)).json()["detections"]) == 2
    finally:
        (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[:1]
        os.kill(int(pid), signal.SIGTERM)  # strace itself would leave the server behind
        process.wait(PATIENCE)
        reader.join(PATIENCE)
    assert not outside(log)
    assert not list(written(home))


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*telemetry.SETTINGS, telemetry.EC2_METADATA):
        monkeypatch.setenv(variable, "theirs")
    telemetry.switch_off()
    assert {os.environ[variable] for variable in (*telemetry.SETTINGS, telemetry.EC2_METADATA)} == {"theirs"}


def test_machines_of_amazon_may_ask_for_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vendor = tmp_path / "sys_vendor"
    marks = ((str(tmp_path / "missing"), "ec2"), (str(vendor), "Amazon EC2"))
    monkeypatch.setattr(telemetry, "_EC2_MARKS", marks)
    for text, there in (("QEMU\n", False), ("Amazon EC2\n", True)):
        vendor.write_text(text)
        monkeypatch.delenv(telemetry.EC2_METADATA, raising=False)
        telemetry.switch_off()
        assert (os.environ.get(telemetry.EC2_METADATA) is None) is there
