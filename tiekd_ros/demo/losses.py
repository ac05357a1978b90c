"""Frames that a swap of students cost, worked out from the stamps of the whole run."""

from __future__ import annotations

from collections.abc import Collection, Iterable

BEFORE_S = 1.0
"""So long before it is asked for, a swap may have begun to disturb the stream: the companion
promotes the new student then."""

AFTER_S = 3.0
"""So long after the depth node announced it, a swap may still disturb the stream."""

UNFINISHED_S = 0.5
"""The depth of the run's newest images may be on its way."""


def lost_by_swaps(
    images: Collection[int], depths: Collection[int], swaps: Iterable[tuple[int, int]]
) -> int:
    """Return how many of the camera's images around swaps got no depth.

    Whatever lost them counts, as nobody can tell a swap's share from that of other load. What
    came before the first depth does not: there was no student.

    Args:
        images: stamps in ns of all that the camera published.
        depths: stamps in ns of all depth images.
        swaps: for each student that replaced another, when the depth node was asked for it and
            when it announced it, in ns of the same clock.
    """
    if not images:
        return 0
    newest = max(images) - _ns(UNFINISHED_S)
    begin = min(depths, default=min(images))
    lost: set[int] = set()
    for asked, announced in swaps:
        low = max(asked - _ns(BEFORE_S), begin)
        high = min(announced + _ns(AFTER_S), newest)
        lost.update(stamp for stamp in images if low <= stamp <= high)
    return len(lost.difference(depths))


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
