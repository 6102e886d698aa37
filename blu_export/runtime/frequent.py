"""What is compiled for the sizes of canvas that come most often, where canvases follow the photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

T = TypeVar("T")
Size = tuple[int, int]
"""(height, width) of a canvas, pixels."""

MOST_SIZES = 4
"""Compiled at a time: of a photo upright and lying down, in two shapes."""
MOST_PIXELS = 2**20
"""Of all that are compiled at a time. In OpenVINO each holds about 600 bytes a pixel for its activations."""
FREQUENT = 32
"""Canvases of one size before it is compiled, which takes the time of some ten of them."""
WINDOW = 2000
"""Canvases after which the counting begins again: a size that is no longer among the most frequent gives way."""


class FrequentSizes(Generic[T]):
    """A network for any size of canvas, and some that are compiled for one size, which are faster.

    ``find`` may be called from several threads: one of them compiles, and the others take ``any_size`` meanwhile.

    Args:
        any_size: what takes every size.
        compile_for: (height, width) -> the same for this size alone.
    """

    def __init__(self, any_size: T, compile_for: Callable[[int, int], T]) -> None:
        self._any_size = any_size
        self._compile_for = compile_for
        self._compiled: dict[Size, T] = {}
        self._seen: Counter[Size] = Counter()
        self._lock = Lock()

    def __len__(self) -> int:
        """Sizes that are compiled, or being compiled."""
        return len(self._compiled)

    def find(self, height: int, width: int) -> T:
        """What runs a canvas of this size fastest; compiles it where the size has become frequent."""
        size = height, width
        with self._lock:
            if self._seen.total() >= WINDOW:
                self._begin_again()
            self._seen[size] += 1
            if size in self._compiled:
                return self._compiled[size]
            if self._seen[size] < FREQUENT or not self._has_room(size):
                return self._any_size
            self._compiled[size] = self._any_size  # until it is compiled
        compiled = self._compile_for(height, width)
        with self._lock:
            if size in self._compiled:
                self._compiled[size] = compiled
        return compiled

    def _has_room(self, size: Size) -> bool:
        pixels = sum(height * width for height, width in (*self._compiled, size))
        return len(self._compiled) < MOST_SIZES and pixels <= MOST_PIXELS

    def _begin_again(self) -> None:
        most = dict(self._seen.most_common(MOST_SIZES))
        self._compiled = {size: network for size, network in self._compiled.items() if size in most}
        self._seen.clear()
