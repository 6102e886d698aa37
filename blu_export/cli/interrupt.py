"""Ctrl-C while modules are being imported."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RETRY = 0.02
"""Seconds until an import is looked at again."""


@contextmanager
def interrupt_after_import() -> Iterator[None]:
    """Within it SIGINT raises KeyboardInterrupt as ever, but not inside an import: once that is over.

    A native module that is interrupted while it starts raises ImportError ("initialization failed"), which
    its package may even swallow as that of an optional part. Where there is no timer (Windows), outside the
    main thread, where no handler can be set, and where SIGINT or the timer serves something else already (a
    shell lets programs in the background ignore SIGINT), nothing changes.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (usual and _timer_is_free() and threading.current_thread() is threading.main_thread()):
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _timer_is_free() -> bool:
    return hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


def _interrupt(_: int, frame: FrameType | None) -> None:
    if _imports(frame):
        signal.setitimer(signal.ITIMER_REAL, RETRY)
    else:
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
