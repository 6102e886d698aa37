"""Stages: their text, and what a resumed run makes of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blu_export.errors import UsageError
from blu_export.train.config import TrainConfig
from blu_export.train.stages import LAYER_SETS, Stage, change_stages, parse_stages


def changed(
    plan: str, done: int, layers: str | None = None, epochs: int | None = None, rate: float | None = None
) -> str:
    stages = parse_stages(plan, 30)
    return text(change_stages(stages, done, 0.1, layers=layers, epochs=epochs, rate=rate))


def text(stages: tuple[Stage, ...]) -> str:
    return ",".join(map(str, stages))


def test_stages_with_rates() -> None:
    assert parse_stages("heads:2@1e-3, all : 3 @ 1e-4", 9) == (Stage("heads", 2, 1e-3), Stage("all", 3, 1e-4))
    assert parse_stages("all@0.5", 9) == (Stage("all", 9, 0.5),)


@given(
    st.lists(
        st.builds(
            Stage,
            st.sampled_from(LAYER_SETS),
            st.integers(1, 99),
            st.none() | st.floats(1e-6, 1).map(lambda v: float(f"{v:g}")),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_stages_read_back(stages: list[Stage]) -> None:
    assert parse_stages(text(tuple(stages)), 1) == tuple(stages)


@pytest.mark.parametrize(
    ("plan", "done", "layers", "epochs", "rate", "expected"),
    [
        # A lower rate after divergence: a new stage, with its own warm-up.
        ("all:30", 10, None, None, 0.01, "all:10@0.1,all:20@0.01"),
        ("heads:2,all:3", 2, None, None, 0.01, "heads:2@0.1,all:3@0.01"),
        ("heads:2,all:3", 1, None, None, 0.01, "heads:1@0.1,heads:1@0.01,all:3@0.01"),
        ("heads:2,all:3", 0, None, None, 0.01, "heads:2@0.01,all:3@0.01"),
        # More epochs, under way and at the end: one stage that is longer.
        ("all:30", 10, None, 40, None, "all:40@0.1"),
        ("all:30", 30, None, 40, None, "all:40@0.1"),
        ("heads:2,all:3", 5, None, 9, None, "heads:2@0.1,all:7@0.1"),
        ("heads:2,all:3", 1, None, 9, None, "heads:2@0.1,all:7@0.1"),
        ("all:30", 30, None, 40, 0.01, "all:30@0.1,all:10@0.01"),
        # Fewer.
        ("heads:2,4+:3,all:5", 1, None, 4, None, "heads:2@0.1,4+:2@0.1"),
        ("all:30", 10, None, 12, None, "all:12@0.1"),
        # Other layers.
        ("all:30", 10, "heads", None, None, "all:10@0.1,heads:20@0.1"),
        ("all:30", 10, "heads", 15, 0.2, "all:10@0.1,heads:5@0.2"),
        ("all:30", 10, "heads:1@0.3,5+:2", None, None, "all:10@0.1,heads:1@0.3,5+:2@0.1"),
        ("heads:2,all:3@0.5", 5, "4+:4", None, None, "heads:2@0.1,all:3@0.5,4+:4@0.1"),
    ],
)
def test_what_is_to_come_can_change(
    plan: str, done: int, layers: str | None, epochs: int | None, rate: float | None, expected: str
) -> None:
    assert changed(plan, done, layers, epochs, rate) == expected
    # Again, as a second worker does that reads what the first one wrote.
    assert changed(expected, done, layers, epochs, rate) == expected


def test_nothing_to_come_is_an_error() -> None:
    with pytest.raises(UsageError, match="after epoch 30 already"):
        changed("all:30", 30, epochs=30)
    with pytest.raises(UsageError, match="Say how many there should be: --epochs"):
        changed("all:30", 30, "heads")


def test_changed_settings_are_whole() -> None:
    config = TrainConfig(epochs=4, learning_rate=0.1)
    changed = config.changed(2, None, 6, 0.01)
    assert (changed.layers, changed.total_epochs, changed.epochs) == ("all:2@0.1,all:4@0.01", 6, 6)
    assert changed.learning_rate == 0.01
    assert config.changed(2, None, None, None) is config
