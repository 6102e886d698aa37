"""The entry of every worker process: ``python -m blu_export.workers.entry OWNER FD MODULE:FUNCTION CONFIG``.

The function is called with its end of the channel and the configuration, a dict.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from importlib import import_module
from typing import Any

from blu_export.workers.channel import Channel

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when the thread that started it ends."""
OWNER_POLL = 1.0
"""Seconds between two looks for the owner, where the system has no such signal."""


def main() -> None:
    """See the module."""
    owner, handle, entry, config = sys.argv[1:]
    die_with(int(owner))
    # Signals to the whole process group, Ctrl-C for one, are the owner's to act on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="worker: %(name)s: %(message)s")
    load_function(entry)(Channel(socket.socket(fileno=int(handle))), json.loads(config))


def load_function(name: str) -> Any:
    """What ``module:function`` names."""
    module, _, function = name.partition(":")
    return getattr(import_module(module), function)


def die_with(owner: int) -> None:
    """End this process when its owner does, even by SIGKILL and in the middle of a call."""
    told = sys.platform == "linux" and not ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != owner:  # it ended before we asked
        os._exit(1)
    if not told:
        threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(OWNER_POLL)
    os._exit(1)


if __name__ == "__main__":
    main()
