"""Worker processes: what is said, and how they end."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from blu_export.errors import EXIT_BAD_INPUT, ModelFileError
from blu_export.workers.channel import ClosedError
from blu_export.workers.owner import AsyncChild, Child

SUPPORT = Path(__file__).parents[1] / "support"
PATIENCE = 60


@pytest.fixture(autouse=True)
def find_the_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(SUPPORT), os.environ.get("PYTHONPATH")])))


def test_messages_go_both_ways() -> None:
    child = Child("worker_entries:echo", {"a": [1, "ä"]})
    try:
        assert child.channel.receive(PATIENCE) == {"config": {"a": [1, "ä"]}, "pid": child.pid}
        long = "x" * 300_000  # more than the socket holds at once
        sender = threading.Thread(target=lambda: child.channel.send(text=long))
        sender.start()
        assert child.channel.receive(PATIENCE) == {"text": long}
        sender.join()
    finally:
        child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_an_error_comes_as_the_nearest_class_that_is_known() -> None:
    child = Child("worker_entries:refuse", {})
    try:
        with pytest.raises(ModelFileError, match="It is odd. Even it out.") as caught:
            child.channel.receive(PATIENCE)
        assert caught.value.exit_code == EXIT_BAD_INPUT
        with pytest.raises(ClosedError):
            child.channel.receive(PATIENCE)
        assert child.wait(PATIENCE) == 0
    finally:
        child.close()


def test_lines_of_a_worker_are_read_whatever_it_does() -> None:
    lines: list[bytes] = []
    child = Child("worker_entries:shout", {"lines": 300}, lines=lines.append)
    try:
        assert child.channel.receive(PATIENCE) == {"written": True}
        assert child.wait(PATIENCE) == 0
    finally:
        child.close()
    assert lines == [b"out " + b"x" * 996, b"", b"err"] * 300 + [b"the last"]  # cut after 1,000 bytes


def test_a_silent_worker_is_waited_for_no_longer_than_asked() -> None:
    child = Child("worker_entries:stop", {})
    try:
        with pytest.raises(TimeoutError):
            child.channel.receive(0.01)
        assert child.wait(0.01) is None
    finally:
        child.close()


def test_a_worker_outlives_the_thread_that_asked_for_it() -> None:
    started: list[Child] = []
    thread = threading.Thread(target=lambda: started.append(Child("worker_entries:echo", {})))
    thread.start()
    thread.join()
    (child,) = started
    try:
        child.channel.receive(PATIENCE)
        child.channel.send(still="here")
        assert child.channel.receive(PATIENCE) == {"still": "here"}
    finally:
        child.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread looks for the owner, which needs the lock")
@pytest.mark.parametrize("entry", ["echo", "hold"])
def test_a_worker_ends_when_its_owner_is_killed(entry: str) -> None:
    owner = subprocess.Popen([sys.executable, SUPPORT / "worker_entries.py", entry], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner.stdout:
        worker = os.pidfd_open(int(owner.stdout.readline()))
    try:
        owner.send_signal(signal.SIGKILL)
        owner.wait(PATIENCE)
        assert select.select([worker], [], [], PATIENCE)[0], "the worker outlives its owner"
    finally:
        os.close(worker)


def test_in_an_event_loop() -> None:
    async def main() -> None:
        child = await AsyncChild.start("worker_entries:echo", {})
        await child.receive()
        child.send(number=1)
        assert await child.receive() == {"number": 1}
        await child.close()
        assert await child.ended() == 0
        with pytest.raises(ClosedError):
            await child.receive()

        stopped = await AsyncChild.start("worker_entries:stop", {})
        assert await stopped.kill() == -signal.SIGKILL

    asyncio.run(main())
