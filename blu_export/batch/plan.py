"""Plan: which photo belongs to which shard. Written before the work starts; afterwards it only grows."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

from blu_export.batch.sink import Sink
from blu_export.errors import DatasetError, UsageError
from blu_export.tiles import Tiling

PLAN_NAME = "_plan.json"
"""Readers of Parquet folders skip names that start with an underscore."""
PLAN_VERSION = 2
"""1: without tiles."""


@dataclass(frozen=True)
class Shard:
    """Photos whose results share a file."""

    index: int
    photos: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.index:05d}.parquet"


@dataclass(frozen=True)
class Plan:
    """All photos of a job, in the order of their shards."""

    model_sha256: str
    min_score: float
    photos: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()
    """Shard ``i`` holds photos[ends[i - 1] : ends[i]]."""
    tiling: Tiling | None = None
    """None: whole photos only."""

    @property
    def shards(self) -> list[Shard]:
        """All of them."""
        starts = (0, *self.ends[:-1])
        return [
            Shard(index, self.photos[start:end])
            for index, (start, end) in enumerate(zip(starts, self.ends, strict=True))
        ]

    def extended(self, photos: list[str], shard_size: int) -> Plan:
        """The plan with those photos that are not in it yet, in shards of their own."""
        known = set(self.photos)
        every = (*self.photos, *(photo for photo in photos if photo not in known))
        ends = [min(start + shard_size, len(every)) for start in range(len(self.photos), len(every), shard_size)]
        return replace(self, photos=every, ends=(*self.ends, *ends))

    def write(self, sink: Sink) -> None:
        """Write it to the sink."""
        values = {
            "version": PLAN_VERSION,
            "model_sha256": self.model_sha256,
            "min_score": self.min_score,
            "tiling": None if self.tiling is None else asdict(self.tiling),
            "ends": self.ends,
            "photos": self.photos,
        }
        sink.write(PLAN_NAME, json.dumps(values).encode())

    @classmethod
    def read(cls, sink: Sink) -> Plan:
        """The plan in a sink.

        Raises:
            DatasetError: it cannot be read.
        """
        path = sink.path(PLAN_NAME)
        try:
            with sink.open(PLAN_NAME) as file:
                values = json.loads(file.read())
            return cls._from_json(values, path)
        except (OSError, ValueError, RecursionError) as error:
            raise DatasetError(f"{path} cannot be read: {error}.", "Choose another sink.") from error

    @classmethod
    def _from_json(cls, values: Any, path: str) -> Plan:
        """The plan in a file's values; raises ValueError where they are none."""
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        fields: list[Any] = [values.get(key) for key in ("version", "model_sha256", "min_score", "photos", "ends")]
        version, model_sha256, min_score, photos, ends = fields
        if type(version) is int and version > PLAN_VERSION:
            raise DatasetError(f"{path} was written by a newer blu.", "Upgrade blu-export.")
        if type(version) is not int or version < 1:
            raise ValueError("its version is not a number from 1 on")
        if not _all_are(photos, str) or not _all_are(ends, int):
            raise ValueError("its photos are not a list of names, or its ends not one of numbers")
        if not isinstance(model_sha256, str) or type(min_score) not in (int, float) or not 0 <= min_score <= 1:
            raise ValueError("its model or its score is missing")
        starts = [0, *ends[:-1]]
        if any(start >= end for start, end in zip(starts, ends, strict=False)) or sum(ends[-1:]) != len(photos):
            raise ValueError("its shards do not add up")
        if len(set(photos)) < len(photos):
            raise ValueError("a photo is in it twice")
        return cls(model_sha256, float(min_score), tuple(photos), tuple(ends), _tiling(values.get("tiling")))

    def check_same(self, other: Plan, sink: Sink) -> None:
        """Raise UsageError when a job with other settings would be mixed into this one."""
        fix = "Go on with those, or choose another sink."
        if self.model_sha256 != other.model_sha256:
            raise UsageError(f"{sink.url} holds results of another model, {self.model_sha256[:12]}….", fix)
        if self.min_score != other.min_score:
            what = f"{sink.url} holds results with scores of at least {self.min_score}, not {other.min_score}."
            raise UsageError(what, fix)
        if self.tiling != other.tiling:
            raise UsageError(f"{sink.url} holds results {_with(self.tiling)}, not {_with(other.tiling)}.", fix)


def _with(tiling: Tiling | None) -> str:
    return "without tiles" if tiling is None else f"with --tile {tiling.side} --overlap {tiling.overlap:g}"


def _tiling(values: Any) -> Tiling | None:
    """The tiles of a plan's file; raises ValueError where they are none."""
    if values is None:
        return None
    side, overlap = (values.get("side"), values.get("overlap")) if isinstance(values, dict) else (None, None)
    if type(side) is not int or isinstance(overlap, bool) or not isinstance(overlap, int | float):
        raise ValueError("its tiles have no side or no overlap")
    try:
        return Tiling(side, overlap)
    except UsageError as error:
        raise ValueError(f"its tiles are invalid: {error.what}") from error


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(each) is kind for each in values)


def open_plan(sink: Sink, empty: Plan, photos: list[str], shard_size: int) -> tuple[Plan, int]:
    """The plan of a sink with all of these photos in it, and how many of them are new; it is in the sink afterwards.

    A plan of other settings of which no shard was finished, as one for a model that could not be loaded, is replaced.

    Args:
        sink: with a plan, or to have one.
        empty: the plan of the wanted settings, without photos.
        photos: all of the source's.
        shard_size: photos of a new shard, at most.

    Raises:
        UsageError: the sink holds something else.
    """
    names = sink.names()
    parts = sorted(name for name in names if name.endswith(".parquet") and not name.startswith("."))
    if PLAN_NAME in names:
        plan = Plan.read(sink)
        if parts:
            plan.check_same(empty, sink)
        elif replace(plan, photos=(), ends=()) != empty:
            plan = empty
    elif parts:
        raise UsageError(f"{sink.url} holds {parts[0]}, which is not from blu batch.", "Choose another sink.")
    else:
        plan = empty
    extended = plan.extended(photos, shard_size)
    if extended != plan:
        extended.write(sink)
    return extended, len(extended.photos) - len(plan.photos)
