"""SIGHUP before there is anything to reload; imports nothing, so that it can come first."""

from __future__ import annotations

import signal
from typing import Any


class Hangups:
    """Remembers a SIGHUP that comes while the server starts; without it, it would end the process."""

    def __init__(self) -> None:
        self.came = False
        signal.signal(signal.SIGHUP, self._note)

    def _note(self, *arguments: Any) -> None:
        self.came = True
