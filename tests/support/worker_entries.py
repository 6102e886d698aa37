"""What worker processes of the tests run."""

from __future__ import annotations

import os
import re
import signal
import sys
from typing import Any

from blu_export.errors import ModelFileError
from blu_export.workers.channel import Channel, error_as_json
from blu_export.workers.owner import Child


class OddModelError(ModelFileError):
    """A class that owners do not have."""


def echo(channel: Channel, config: dict[str, Any]) -> None:
    """Send back what comes."""
    channel.send(config=config, pid=os.getpid())
    for message in channel:
        channel.send(**message)


def refuse(channel: Channel, config: dict[str, Any]) -> None:
    """Send an error and end."""
    channel.send(error=error_as_json(OddModelError("It is odd.", "Even it out.")))


def shout(channel: Channel, config: dict[str, Any]) -> None:
    """Write more to stdout and stderr than a pipe holds, then say so and write a last line."""
    for _ in range(config["lines"]):
        os.write(1, b"out " + b"x" * 996 + b"\n")
        os.write(2, b"err\r\n")
    channel.send(written=True)
    os.write(2, b"the last")


def hold(channel: Channel, config: dict[str, Any]) -> None:
    """Say so, then hold the interpreter's lock for hours: no thread of this process runs."""
    channel.send(holding=True)
    re.match(r"(a*)*b", "a" * 64)


def stop(channel: Channel, config: dict[str, Any]) -> None:
    """Stop, as a process that hangs."""
    os.kill(os.getpid(), signal.SIGSTOP)


if __name__ == "__main__":  # an owner, which prints the id of a worker that holds its lock
    child = Child(f"worker_entries:{sys.argv[1]}", {})
    child.channel.receive()
    print(child.pid, flush=True)
    signal.pause()
