"""How a frame log is split, noted in it: the same for the companion, imports, and all after them.

Were one of them to count blocks of another length, frames that are neighbours in time would lie
in both splits, and students would be judged by what they have learnt from.
"""

from __future__ import annotations

import dataclasses
import logging
import sqlite3
from pathlib import Path
from typing import NamedTuple

from tiekd_ros.frames.settings import FrameLogSettings

_LOG = logging.getLogger(__name__)
_NS_PER_S = 1_000_000_000
_READ = "SELECT value FROM meta WHERE key IN ('block_ns', 'held_out_every') ORDER BY key"


class SplitRule(NamedTuple):
    """How a frame log is split."""

    block_s: float
    """Length of a time block."""
    held_out_every: int
    """One block in so many is held out."""

    @classmethod
    def of(cls, settings: FrameLogSettings) -> SplitRule:
        """Return what settings say."""
        return cls(settings.block_s, settings.held_out_every)

    def put_into(self, settings: FrameLogSettings) -> FrameLogSettings:
        """Return settings that say this."""
        return dataclasses.replace(settings, **self._asdict())


def read_rule(connection: sqlite3.Connection) -> SplitRule | None:
    """Read how a log is split; None where no writer has settled it yet."""
    rows = connection.execute(_READ).fetchall()
    return SplitRule(rows[0][0] / _NS_PER_S, int(rows[1][0])) if len(rows) == 2 else None


def write_rule(connection: sqlite3.Connection, rule: SplitRule) -> None:
    """Settle how a log is split, in the caller's transaction."""
    values = (("block_ns", round(rule.block_s * _NS_PER_S)), ("held_out_every", rule[1]))
    connection.executemany("INSERT INTO meta VALUES (?, ?)", values)


def warn_of(path: Path, kept: SplitRule, wanted: SplitRule) -> None:
    """Say that a log stays split as it is."""
    _LOG.warning(
        "%s is split by block_s = %g and held_out_every = %d since its first frame: kept to that, "
        "and not to %g and %d; for another split start an empty log",
        *(path, *kept, *wanted),
    )
