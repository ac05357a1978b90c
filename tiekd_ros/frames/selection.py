"""Which images a frame log keeps, by what is stored already, and what has to go for them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tiekd_ros.frames import policy
from tiekd_ros.frames.catalogue import Catalogue
from tiekd_ros.frames.database import used_bytes
from tiekd_ros.frames.eviction import NoRoomError, make_room
from tiekd_ros.frames.nearest import Distances
from tiekd_ros.frames.quality import Look
from tiekd_ros.frames.records import Split
from tiekd_ros.frames.settings import FrameLogSettings
from tiekd_ros.frames.split_rule import SplitRule, warn_of


class Selection:
    """Compares images with what a log holds. The store's write lock guards it.

    Args:
        path: of the log, for people.
        settings: what to keep.
        evicts: whether what is redundant may go for a new frame.
    """

    def __init__(self, path: Path, settings: FrameLogSettings, *, evicts: bool) -> None:
        self.settings = settings
        """What it keeps; split as the log is, once that is known."""
        self.catalogue = Catalogue()
        self._path = path
        self._evicts = evicts

    def catch_up(self, connection: sqlite3.Connection) -> bool:
        """Take in what changed in the file; return whether anything had."""
        changed = self.catalogue.sync(connection)
        rule, own = self.catalogue.rule, SplitRule.of(self.settings)
        if rule is not None and rule != own:
            warn_of(self._path, rule, own)
            self.settings = rule.put_into(self.settings)
        return changed

    def choose(self, look: Look, stamp_ns: int) -> tuple[policy.Choice, Distances]:
        """Choose a split, or none, by time and by the views that are stored."""
        index, origin_ns = self.catalogue.index, self.catalogue.origin_ns
        distances = index.distances(look.thumbnail)
        neighbours = index.neighbours(distances, self.settings.identical_distance)
        origin_ns = stamp_ns if origin_ns is None else origin_ns
        return policy.choose_split(self.settings, stamp_ns, origin_ns, neighbours), distances

    def take_in(
        self,
        connection: sqlite3.Connection,
        frame_id: int,
        stamp_ns: int,
        look: Look,
        split: Split,
        distances: Distances,
    ) -> None:
        """Take in the frame that the caller has just inserted, with what `choose` returned."""
        rule = SplitRule.of(self.settings)
        self.catalogue.add(connection, frame_id, stamp_ns, look.thumbnail, split, distances, rule)

    def fit(self, connection: sqlite3.Connection, keep: int) -> None:
        """Evict frames, never `keep`, until the log has room, in the caller's transaction.

        Raises:
            NoRoomError: nothing that may go is left.
        """
        if used_bytes(connection) <= self.settings.max_bytes:
            return
        if not self._evicts:
            raise NoRoomError
        self.catch_up(connection)
        make_room(connection, self.catalogue.index, self.settings, keep)
        self.catalogue.count_change(connection)
