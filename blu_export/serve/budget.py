"""Budget: something of which there is only so much at once, for which tasks wait in line."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any


class Budget:
    """Pixels that may be decoded at once; photos wait for them in line."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, pixels: int) -> bool:
        """Take this many, if they are free and no one waits."""
        if self._line or pixels > self._free:
            return False
        self._free -= pixels
        return True

    async def take(self, pixels: int, patience: float) -> bool:
        """Wait for this many; False if they are not free after ``patience`` seconds."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((pixels, waiting))
        self._serve()
        try:
            async with asyncio.timeout(patience):
                await waiting
        except (TimeoutError, asyncio.CancelledError) as error:
            if (pixels, waiting) in self._line:
                self._line.remove((pixels, waiting))
            elif not waiting.cancelled():
                self._free += pixels
            self._serve()
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        return True

    def give(self, pixels: int) -> None:
        """They are free again."""
        self._free += pixels
        self._serve()

    def _serve(self) -> None:
        while self._line and self._line[0][0] <= self._free:
            pixels, waiting = self._line.popleft()
            if not waiting.done():
                self._free -= pixels
                waiting.set_result(None)


class Holding:
    """What one photo holds of a budget, once it has it until it gives it back."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._pixels = budget, 0
        self._user: asyncio.Task[Any] | None = None

    def take_now(self, pixels: int) -> bool:
        """Whether it holds them, or can have them at once."""
        if self._pixels < pixels and self._budget.take_now(pixels - self._pixels):
            self._pixels = pixels
        return self._pixels >= pixels

    async def take(self, pixels: int, patience: float) -> bool:
        """See Budget."""
        if await self._budget.take(pixels - self._pixels, patience):
            self._pixels = pixels
        return self._pixels >= pixels

    def give(self) -> None:
        """Give all of it back, unless a task still uses it."""
        if self._user is None or self._user.done():
            pixels, self._pixels = self._pixels, 0
            self._budget.give(pixels)

    def give_after(self, task: asyncio.Task[Any]) -> None:
        """Give it back when a task, which no one waits for any more, is done."""
        self._user = task
        task.add_done_callback(lambda _: self.give())
