"""Counting what is in the frame log."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from tiekd_ros.frames.database import used_bytes
from tiekd_ros.frames.records import HELD_OUT, LABELLED, LOGGED, REJECTED, TRAIN, StoreStats
from tiekd_ros.frames.rows import IN_SIGHT


def count(
    connection: sqlite3.Connection, max_bytes: int, not_kept: Mapping[str, int]
) -> StoreStats:
    """Count by state, split, reason and teacher, in one consistent view of the file."""
    frames: dict[str, dict[str, int]] = {
        state: {TRAIN: 0, HELD_OUT: 0} for state in (LOGGED, LABELLED, REJECTED)
    }
    for state, split, number in connection.execute(
        "SELECT state, split, COUNT(*) FROM frames GROUP BY state, split"
    ):
        frames[state][split] = number
    rejected: dict[str, int] = dict(
        connection.execute(
            "SELECT reason, COUNT(*) FROM frames WHERE state = 'rejected' GROUP BY reason"
        ).fetchall()
    )
    teachers: dict[str, int] = dict(
        connection.execute(
            "SELECT teacher_name || ' ' || teacher_version AS teacher, COUNT(*) FROM frames "
            "WHERE state = 'labelled' GROUP BY teacher"
        ).fetchall()
    )
    new_labels = connection.execute(
        "SELECT COUNT(*) FROM frames WHERE state = 'labelled' AND split = 'train' "
        "AND (last_round IS NULL OR last_round = ?)",
        (IN_SIGHT,),
    ).fetchone()[0]
    first, last = connection.execute("SELECT MIN(stamp_ns), MAX(stamp_ns) FROM frames").fetchone()
    return StoreStats(
        frames=frames,
        rejected=rejected,
        new_labels=new_labels,
        bytes=used_bytes(connection),
        max_bytes=max_bytes,
        first_stamp_ns=first,
        last_stamp_ns=last,
        teachers=teachers,
        not_kept=dict(not_kept),
    )
