"""Making room: which frames go when the frame log is full.

First those that were rejected; then labelled training frames that a round trained on; then
the rest, from the split that has more than its share (1 / held_out_every for held-out): no
student could be judged without held-out frames, nor trained without the others. Within a
class the most redundant goes first: the one whose nearest other frame is nearest.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from tiekd_ros.frames.database import used_bytes
from tiekd_ros.frames.nearest import Link, ThumbnailIndex
from tiekd_ros.frames.records import HELD_OUT, TRAIN
from tiekd_ros.frames.settings import FrameLogSettings

# Where the limit was lowered, the log shrinks over several writes: none takes minutes.
_MOST_PER_WRITE = 64

_RANK = """CASE
    WHEN state = 'rejected' THEN 0
    WHEN split = 'train' AND state = 'labelled' AND last_round > 0 THEN 1
    WHEN split = :surplus THEN 2
    ELSE 3 END"""


class NoRoomError(Exception):
    """Nothing is left to evict, and the log is still too large."""


def make_room(
    connection: sqlite3.Connection, index: ThumbnailIndex, settings: FrameLogSettings, keep: int
) -> None:
    """Evict frames, never `keep`, until the log fits `max_bytes_mb`.

    Runs inside the caller's transaction.

    Raises:
        NoRoomError: the frame `keep` alone is too large.
    """
    for _ in range(_MOST_PER_WRITE):
        if used_bytes(connection) <= settings.max_bytes:
            return
        victim = _most_dispensable(connection, settings, keep)
        if victim is None:
            raise NoRoomError
        connection.execute("DELETE FROM frames WHERE id = ?", (victim,))
        save_links(connection, index.remove(victim))


def save_links(connection: sqlite3.Connection, links: Iterable[Link]) -> None:
    """Store which frame is nearest to which."""
    connection.executemany(
        "UPDATE frames SET nearest_id = ?, nearest_distance = ? WHERE id = ?",
        [
            (link.nearest_id, None if link.nearest_id is None else link.distance, link.frame_id)
            for link in links
        ],
    )


def _most_dispensable(
    connection: sqlite3.Connection, settings: FrameLogSettings, keep: int
) -> int | None:
    counts: dict[str, int] = dict(
        connection.execute("SELECT split, COUNT(*) FROM frames GROUP BY split").fetchall()
    )
    many_held_out = counts.get(HELD_OUT, 0) * settings.held_out_every > sum(counts.values())
    row = connection.execute(
        f"SELECT id FROM frames WHERE id != :keep ORDER BY {_RANK}, nearest_distance IS NULL, "
        "nearest_distance, id LIMIT 1",
        {"keep": keep, "surplus": HELD_OUT if many_held_out else TRAIN},
    ).fetchone()
    return None if row is None else int(row[0])
