"""Networks of the sizes that come most often."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from blu_export.runtime.frequent import FREQUENT, MOST_PIXELS, MOST_SIZES, WINDOW, FrequentSizes


class Compiler:
    """Names networks by their size, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.sizes: list[tuple[int, int]] = []

    def __call__(self, height: int, width: int) -> str:
        self.sizes.append((height, width))
        return f"{height}x{width}"


def _find(sizes: FrequentSizes[str], height: int, width: int, times: int) -> list[str]:
    return [sizes.find(height, width) for _ in range(times)]


def test_a_size_is_compiled_once_it_is_frequent() -> None:
    compiler = Compiler()
    sizes = FrequentSizes("any", compiler)
    assert _find(sizes, 64, 128, FREQUENT + 2) == ["any"] * (FREQUENT - 1) + ["64x128"] * 3
    assert _find(sizes, 128, 64, FREQUENT - 1) == ["any"] * (FREQUENT - 1)  # each size is counted by itself
    assert compiler.sizes == [(64, 128)]


def test_no_more_than_a_few_are_kept() -> None:
    compiler = Compiler()
    sizes = FrequentSizes("any", compiler)
    for width in range(1, MOST_SIZES + 3):
        _find(sizes, 64, width, FREQUENT)
    assert compiler.sizes == [(64, width) for width in range(1, MOST_SIZES + 1)]
    assert len(sizes) == MOST_SIZES
    assert sizes.find(64, MOST_SIZES + 1) == "any"


def test_large_canvases_have_room_for_fewer() -> None:
    sizes = FrequentSizes("any", Compiler())
    for width in (1024, 1088, 256, 128):
        _find(sizes, 768, width, FREQUENT)
    assert [sizes.find(768, width) for width in (1024, 1088, 256, 128)] == ["768x1024", "any", "768x256", "any"]
    assert sum(768 * width for width in (1024, 256)) <= MOST_PIXELS


def test_what_became_rare_gives_way() -> None:
    compiler = Compiler()
    sizes = FrequentSizes("any", compiler)
    for width in range(1, MOST_SIZES + 1):
        _find(sizes, 64, width, FREQUENT)
    later = [(320, width) for width in range(MOST_SIZES)]
    for height, width in later:
        _find(sizes, height, width, WINDOW // MOST_SIZES)
    for height, width in later:
        assert _find(sizes, height, width, FREQUENT)[-1] == f"{height}x{width}"
    assert len(sizes) == MOST_SIZES
    assert sizes.find(64, 1) == "any"


def test_one_thread_compiles_and_the_others_go_on() -> None:
    asked, allowed = Event(), Event()

    def compile_for(height: int, width: int) -> str:
        assert not asked.is_set()  # compiled once only
        asked.set()
        assert allowed.wait(30)
        return "compiled"

    sizes = FrequentSizes("any", compile_for)
    _find(sizes, 64, 64, FREQUENT - 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(sizes.find, 64, 64)
        assert asked.wait(30)
        assert _find(sizes, 64, 64, 3) == ["any"] * 3
        allowed.set()
        assert first.result() == "compiled"
    assert sizes.find(64, 64) == "compiled"


def test_a_failure_to_compile_is_raised_and_leaves_the_general_one() -> None:
    def refuse(height: int, width: int) -> str:
        raise RuntimeError("out of memory")

    sizes = FrequentSizes("any", refuse)
    _find(sizes, 64, 64, FREQUENT - 1)
    with pytest.raises(RuntimeError, match="out of memory"):
        sizes.find(64, 64)
    assert sizes.find(64, 64) == "any"
