"""Sets of positions as disjoint intervals: which rows of a pass are done, and which are left."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

Intervals = tuple[tuple[int, int], ...]
"""Half-open, ascending, disjoint and not adjacent."""


def union(*sets: Iterable[tuple[int, int]]) -> Intervals:
    """All positions of several sets."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(i for part in sets for i in part if i[0] < i[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return tuple(merged)


def difference(whole: Intervals, done: Intervals) -> Intervals:
    """The positions of a set that are not in another."""
    left = []
    for start, stop in whole:
        for low, high in done:
            if high <= start or low >= stop:
                continue
            if low > start:
                left.append((start, low))
            start = max(start, high)
        if start < stop:
            left.append((start, stop))
    return tuple(left)


def size(intervals: Intervals) -> int:
    """How many positions a set has."""
    return sum(stop - start for start, stop in intervals)


def of(positions: ArrayLike) -> Intervals:
    """A set of positions, each of which is there once, in any order."""
    ordered = np.sort(np.asarray(positions, np.int64).reshape(-1))
    if not len(ordered):
        return ()
    cuts = np.flatnonzero(np.diff(ordered) != 1) + 1
    runs = np.split(ordered, cuts)
    return union([(int(run[0]), int(run[-1]) + 1) for run in runs])


def share(whole: Intervals, part: int, parts: int) -> Intervals:
    """One of several equal parts of a set, to within one position."""
    n = size(whole)
    low, high = n * part // parts, n * (part + 1) // parts
    found, before = [], 0
    for start, stop in whole:
        begin, end = max(start, start + low - before), min(stop, start + high - before)
        if begin < end:
            found.append((begin, end))
        before += stop - start
    return tuple(found)
