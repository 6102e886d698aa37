"""Dividing a data set into parts: groups stay together, classes are spread alike, and the same call gives the same."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from blu_export.data.dataset import Dataset, Record
from blu_export.errors import UsageError


def split_dataset(
    dataset: Dataset, shares: Mapping[str, float], group: str | None = None, seed: int = 0
) -> dict[str, Dataset]:
    """Parts of a data set.

    Photos of a group (and two entries of one photo) go into the same part. Rare classes are shared out first, each to
    the part that lacks most photos of it (iterative stratification, Sechidis et al. 2011).

    Args:
        dataset: the photos.
        shares: share of the photos by part, 0..1; they add up to 1.
        group: ``folder``: photos of one folder are a group; or a regular expression, by what it finds in the path: its
            first group in parentheses, or all; photos in which it finds nothing are groups of their own.
        seed: of the order in which groups of one class come.

    Raises:
        UsageError: the shares do not add up to 1, or the expression cannot be read.
    """
    if abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise UsageError(f"The shares {', '.join(f'{share:g}' for share in shares.values())} do not add up to 1.")
    groups: defaultdict[str, list[Record]] = defaultdict(list)
    for record in dataset.records:
        groups[group_of(record, group)].append(record)
    # By name, not by place: the order of the file decides nothing.
    names = sorted(groups)
    names = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    shown = {name: _classes(groups[name]) for name in names}
    totals: Counter[int] = sum(shown.values(), Counter())
    wanted = {part: {c: share * count for c, count in totals.items()} for part, share in shares.items()}
    room = {part: share * len(dataset) for part, share in shares.items()}
    place: dict[str, str] = {}

    def give(name: str, category: int | None) -> None:
        def need(part: str) -> tuple[float, float]:
            return (0.0 if category is None else wanted[part][category]), room[part]

        part = max(shares, key=need)
        place[name] = part
        room[part] -= len(groups[name])
        for each, count in shown[name].items():
            wanted[part][each] -= count

    for category in sorted(totals, key=lambda each: (totals[each], each)):
        having = [name for name in names if name not in place and shown[name][category]]
        for name in sorted(having, key=lambda name: -shown[name][category]):  # large groups while there is room
            give(name, category)
    for name in names:
        if name not in place:
            give(name, None)
    part_of = {id(record): place[name] for name, records in groups.items() for record in records}
    return {
        part: replace(dataset, records=tuple(record for record in dataset.records if part_of[id(record)] == part))
        for part in shares
    }


def group_of(record: Record, group: str | None) -> str:
    """What a photo is grouped by.

    Raises:
        UsageError: the expression cannot be read.
    """
    if group is None:
        return record.uri
    if group == "folder":
        return record.uri.replace("\\", "/").rpartition("/")[0]
    try:
        found = re.search(group, record.uri)
    except re.error as error:
        raise UsageError(
            f"--group {group} cannot be read: {error}.", "Write folder, or a regular expression."
        ) from error
    if found is None:
        return record.uri
    return (found[1] if found.re.groups else found[0]) or ""


def _classes(records: list[Record]) -> Counter[int]:
    """Photos of a group by the class that they show."""
    return Counter(category for record in records for category in {each.category for each in record.annotations})
