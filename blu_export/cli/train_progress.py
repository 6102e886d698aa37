"""What ``blu train`` says within an epoch: a live line on a terminal, a line now and then off it."""

from __future__ import annotations

import time
from collections import deque
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from blu_export.cli.common import say, stderr

LINE_SECONDS = 60.0
"""Between lines off a terminal."""
WINDOW = 20
"""Steps that the rate is averaged over."""


class TrainProgress:
    """Call it after each step.

    Args:
        epochs: of the whole run.
        steps: per epoch.
        batch: photos per step.
        seconds: between lines off a terminal.
    """

    def __init__(self, epochs: int, steps: int, batch: int, seconds: float = LINE_SECONDS) -> None:
        self.epochs, self.steps, self.batch, self.seconds = epochs, steps, batch, seconds
        self._ends: deque[float] = deque(maxlen=WINDOW + 1)
        self._step_seconds: float | None = None
        self._loss = 0.0
        self._said = time.monotonic()
        self._terminal = stderr().is_terminal
        self._live: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> TrainProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, number: int, loss: float) -> None:
        """Step ``number`` of the run, from 0, is done."""
        epoch, step = divmod(number, self.steps)
        self._loss = loss if step == 0 else self._loss + loss
        now = time.monotonic()
        self._ends.append(now)
        if len(self._ends) > 1:
            self._step_seconds = (now - self._ends[0]) / (len(self._ends) - 1)
        text = self._text(number, self._loss / (step + 1))
        if self._terminal:
            self._show(epoch, step, text)
        elif now - self._said >= self.seconds and step + 1 < self.steps:
            self._said = now
            say(f"epoch {epoch + 1}/{self.epochs}  step {step + 1}/{self.steps}  {text}")
        if step + 1 == self.steps:  # what follows, validation for one, is not part of a step
            self._stop()
            self._ends.clear()

    def _text(self, number: int, loss: float) -> str:
        text = f"loss {loss:.3f}"
        if self._step_seconds is None:
            return text
        left = (self.epochs * self.steps - number - 1) * self._step_seconds
        return f"{text}  {self.batch / self._step_seconds:.1f} photos/s  {duration(left)} left"

    def _show(self, epoch: int, step: int, text: str) -> None:
        if self._live is None:
            columns = (TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("{task.fields[text]}"))  # fmt: skip
            self._live = Progress(*columns, console=stderr(), transient=True)
            self._task = self._live.add_task("", total=self.steps, epoch="", text="")
            self._live.start()
        self._live.update(self._task, completed=step + 1, epoch=f"{epoch + 1}/{self.epochs}", text=text)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
