"""The frame log: one SQLite file that holds what the robot saw and what the teacher said.

A frame goes `logged -> labelled -> (used in round n)`, or is `rejected` with a reason. Every
change is one transaction, so a process that is killed leaves whole frames only. One store
object serves all threads of a process; other processes open the same file beside it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from tiekd_ros.errors import BadDepthError, BadImageError, BadIntrinsicsError
from tiekd_ros.frames import policy
from tiekd_ros.frames.catalogue import Catalogue
from tiekd_ros.frames.counting import count
from tiekd_ros.frames.database import Database, used_bytes
from tiekd_ros.frames.errors import StoreFullError, UndecodableFrameError
from tiekd_ros.frames.eviction import NoRoomError, make_room
from tiekd_ros.frames.labels import decode_confidence, encode_label
from tiekd_ros.frames.nearest import Distances
from tiekd_ros.frames.quality import Look, look_at
from tiekd_ros.frames.records import (
    KeptLabel,
    LoggedFrame,
    Observation,
    Split,
    StoreStats,
    TrainingFrame,
    Verdict,
)
from tiekd_ros.frames.rows import (
    IN_SIGHT,
    PASSED_OVER,
    insert_frame,
    intrinsics_of,
    read_labelled,
    read_newest_labels,
    read_waiting,
    write_label,
    write_rejection,
)
from tiekd_ros.frames.settings import FrameLogSettings
from tiekd_ros.frames.split_rule import SplitRule, read_rule, warn_of
from tiekd_ros.images import DepthMap, decode_depth_png, decode_image, encode_jpeg


class FrameStore:
    """An open frame log. Every method may be called from any thread.

    Every method raises, where the file is at fault, `StoreLockedError`, `StoreFullError`,
    `StoreCorruptError` or their base `FrameStoreError`; nothing stored is lost by it, and
    the same call works again once the fault is over.
    """

    def __init__(
        self,
        path: Path,
        settings: FrameLogSettings | None = None,
        *,
        read_only: bool = False,
        evicts: bool = True,
    ) -> None:
        """Open the file `path`; make it where it is missing and may be written.

        Where the log is full and `evicts` is off, nothing that is stored goes: frames are
        refused as `no_room`. How the log is split was settled by its first frame: what
        `settings` say otherwise of `block_s` and `held_out_every` does not count.

        Raises:
            StoreCorruptError: it is no frame log or a damaged one; it is left as it is.
            StoreVersionError: a newer version of this package wrote it.
            FrameStoreError: it, or its folder, is missing or cannot be used.
        """
        self._settings = settings if settings is not None else FrameLogSettings()
        self._db = Database(
            Path(path), read_only=read_only, timeout_s=self._settings.lock_timeout_s
        )
        self._evicts = evicts
        self._wanted = SplitRule.of(self._settings)
        self._catalogue = Catalogue()
        self._not_kept: Counter[str] = Counter()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The file."""
        return self._db.path

    @property
    def settings(self) -> FrameLogSettings:
        """What it keeps, and how much; from the first `add` on, split as the log is."""
        return self._settings

    @property
    def rule(self) -> SplitRule | None:
        """How the log is split already; None where its first frame will settle it."""
        with self._db.read() as connection:
            return read_rule(connection)

    def close(self) -> None:
        """Close the file; waits for a change that is under way. Closing twice does no harm."""
        self._db.close()

    def add(self, observation: Observation, label: KeptLabel | None = None) -> Verdict:
        """Store an image if it is worth keeping; what is redundant may be evicted for it.

        A `label` that is known already is stored with it, or neither is.

        Raises:
            BadImageError: the image is no uint8 array of shape (H, W, 3).
            BadDepthError: no pixel of the label is known.
        """
        with self._db.write_lock:
            with self._db.read() as connection:
                self._catalogue.sync(connection)
            self._keep_to(self._catalogue.rule)
            kept = SplitRule.of(self._settings)
            if kept != self._wanted:  # said once
                warn_of(self.path, kept, self._wanted)
                self._wanted = kept
            verdict = self._add(observation, label)
            if not verdict.kept:
                self._not_kept[verdict.reason] += 1
            return verdict

    def unlabelled(self, limit: int, skip: Collection[int] = ()) -> list[LoggedFrame]:
        """Return up to `limit` frames that wait for a label, in the order they were logged.

        `skip` names frames to leave out (a few: those that are being asked for).
        """
        with self._db.read() as connection:
            return read_waiting(connection, limit, skip)

    def put_label(
        self,
        frame_id: int,
        depth: DepthMap,
        teacher_name: str,
        teacher_version: str,
        confidence: npt.NDArray[np.floating] | None = None,
    ) -> None:
        """Store what a teacher said of a frame; an earlier label is replaced.

        `depth` is float (h, w) in metres, NaN = unknown; its size may differ from the
        image's, its view must not. It is kept to 1/256 m, up to 255 m. `confidence` is
        (h, w) in 0..1.

        Raises:
            UnknownFrameError: the frame was evicted meanwhile.
            BadDepthError: no pixel is known, or the shapes differ.
            StoreFullError: frame and label alone exceed `max_bytes_mb`, or the disk is full.
        """
        depth_png, confidence_png = encode_label(depth, confidence)
        frame_id = int(frame_id)
        with self._change() as connection:
            teacher = (teacher_name, teacher_version)
            write_label(connection, frame_id, depth_png, confidence_png, teacher)
            try:
                self._fit(connection, keep=frame_id)
            except NoRoomError:
                raise StoreFullError(
                    f"frame {frame_id} and its label alone exceed max_bytes_mb = "
                    f"{self._settings.max_bytes_mb}; raise it"
                ) from None

    def reject(self, frame_id: int, reason: str) -> None:
        """Mark a frame as not to be labelled or used; a label that it has is dropped.

        Raises:
            UnknownFrameError: the frame was evicted meanwhile.
        """
        with self._change() as connection:
            write_rejection(connection, int(frame_id), reason)

    def labelled_ids(self, split: Split | None = None) -> list[int]:
        """Return the ids of all labelled frames, or of one split's, ordered by stamp."""
        query = "SELECT id FROM frames WHERE state = 'labelled'"
        if split is not None:
            query += " AND split = :split"
        with self._db.read() as connection:
            rows = connection.execute(f"{query} ORDER BY stamp_ns, id", {"split": split})
            return [int(row[0]) for row in rows]

    def load(self, frame_id: int) -> TrainingFrame:
        """Read a labelled frame.

        Raises:
            UnknownFrameError: it was evicted meanwhile, or has no label.
            UndecodableFrameError: its image or label is damaged; the others are not.
        """
        frame_id = int(frame_id)
        with self._db.read() as connection:
            row = read_labelled(connection, frame_id)
        stamp_ns, split, *camera, jpeg, depth, confidence = row
        try:
            return TrainingFrame(
                id=frame_id,
                image=decode_image(jpeg),
                depth=decode_depth_png(depth),
                intrinsics=intrinsics_of(camera),
                stamp_ns=stamp_ns,
                split=split,
                confidence=None if confidence is None else decode_confidence(confidence),
            )
        except (BadImageError, BadDepthError, BadIntrinsicsError) as error:
            raise UndecodableFrameError(
                f"frame {frame_id} in {self.path} is damaged ({error}); go on without it"
            ) from error

    def newest_labels(self, limit: int) -> list[KeptLabel]:
        """Return the labels of the newest labelled frames, oldest first, without damaged ones."""
        with self._db.read() as connection:
            rows = read_newest_labels(connection, limit)
        labels = []
        for depth, name, version in rows:
            with suppress(BadDepthError):
                labels.append(KeptLabel(decode_depth_png(depth), name, version))
        return labels

    def mark_seen(self) -> None:
        """Note which labels there are as a round begins; all but these count as new after it.

        Until `mark_used` says that the round is over they count as new as well: a round that
        was killed has seen nothing.
        """
        with self._change() as connection:
            connection.execute(
                "UPDATE frames SET last_round = ? "
                "WHERE state = 'labelled' AND split = 'train' AND last_round IS NULL",
                (IN_SIGHT,),
            )

    def mark_used(self, ids: Iterable[int], round_number: int) -> None:
        """Note that a round is over and trained on these frames; ids that are gone do no harm.

        No label that `mark_seen` noted counts as new from now on.
        """
        rows = [(int(round_number), int(frame_id)) for frame_id in ids]
        with self._change() as connection:
            connection.executemany("UPDATE frames SET last_round = ? WHERE id = ?", rows)
            connection.execute(
                "UPDATE frames SET last_round = ? WHERE last_round = ?", (PASSED_OVER, IN_SIGHT)
            )

    def stats(self) -> StoreStats:
        """Count what is stored. Waits for no writer."""
        with self._db.read() as connection:
            return count(connection, self._settings.max_bytes, self._not_kept)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._db.write_lock:
            newest_id = self._catalogue.newest_id
            try:
                with self._db.write() as connection:
                    yield connection
            except BaseException:
                self._catalogue.distrust(newest_id)
                raise

    def _add(self, observation: Observation, label: KeptLabel | None) -> Verdict:
        settings, stamp_ns = self._settings, int(observation.stamp_ns)
        if policy.is_too_soon(settings, stamp_ns, self._catalogue.last_ns):
            return Verdict(None, policy.TOO_SOON)
        look = look_at(observation.image)
        fault = policy.quality_fault(settings, look)
        if fault is not None:
            return Verdict(None, fault)
        choice, distances = self._choose(look, stamp_ns)
        if choice.split is None:
            return Verdict(None, choice.reason)
        jpeg = encode_jpeg(observation.image, settings.jpeg_quality)
        depth_png = encode_label(label.depth, None)[0] if label is not None else b""
        try:
            with self._change() as connection:
                if self._catalogue.sync(connection):  # another process was faster
                    self._keep_to(self._catalogue.rule)
                    choice, distances = self._choose(look, stamp_ns)
                if choice.split is None:
                    return Verdict(None, choice.reason)
                frame_id = insert_frame(
                    connection, observation, look, jpeg, choice.split, distances
                )
                self._catalogue.add(
                    connection,
                    frame_id,
                    stamp_ns,
                    look.thumbnail,
                    choice.split,
                    distances,
                    SplitRule.of(self._settings),
                )
                if label is not None:
                    teacher = (label.teacher_name, label.teacher_version)
                    write_label(connection, frame_id, depth_png, None, teacher)
                self._fit(connection, keep=frame_id)
        except NoRoomError:
            return Verdict(None, policy.NO_ROOM)
        return Verdict(frame_id, policy.KEPT)

    def _choose(self, look: Look, stamp_ns: int) -> tuple[policy.Choice, Distances]:
        index, origin_ns = self._catalogue.index, self._catalogue.origin_ns
        distances = index.distances(look.thumbnail)
        neighbours = index.neighbours(distances, self._settings.identical_distance)
        origin_ns = stamp_ns if origin_ns is None else origin_ns
        return policy.choose_split(self._settings, stamp_ns, origin_ns, neighbours), distances

    def _fit(self, connection: sqlite3.Connection, keep: int) -> None:
        if used_bytes(connection) <= self._settings.max_bytes:
            return
        if not self._evicts:
            raise NoRoomError
        self._catalogue.sync(connection)
        self._keep_to(self._catalogue.rule)
        make_room(connection, self._catalogue.index, self._settings, keep)
        self._catalogue.count_change(connection)

    def _keep_to(self, rule: SplitRule | None) -> None:
        if rule is not None and rule != SplitRule.of(self._settings):
            self._settings = rule.put_into(self._settings)
