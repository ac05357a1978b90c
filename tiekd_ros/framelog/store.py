"""The frame log: one SQLite file that holds what the robot saw and what the teacher said.

A frame goes `logged -> labelled -> (used in round n)`, or is `rejected` with a reason. Every
change is one transaction, so a process that is killed leaves whole frames only. One store
object serves all threads of a process; other processes open the same file beside it.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import BadDepthError, BadImageError, BadIntrinsicsError, TiekdError
from tiekd_ros.core.images import decode_depth_png, decode_image
from tiekd_ros.core.labels import Label
from tiekd_ros.framelog import policy
from tiekd_ros.framelog.labels import decode_confidence, encode_label, read_invalid_masks
from tiekd_ros.framelog.novelty import NoRoomError, NoveltyIndex
from tiekd_ros.framelog.policy import SplitRule, measure_image, read_rule
from tiekd_ros.framelog.records import (
    AddResult,
    LabelledSpan,
    LoggedFrame,
    Observation,
    Split,
    StoreStats,
    TrainingFrame,
)
from tiekd_ros.framelog.rows import (
    count,
    encode_frame,
    insert_frame,
    intrinsics_of,
    read_labelled,
    read_labelled_ids,
    read_labelled_span,
    read_newest_labels,
    read_waiting,
    write_label,
    write_rejection,
    write_round_finished,
    write_round_started,
    write_unlabelled,
)
from tiekd_ros.framelog.schema import Database, StoreFullError, UndecodableFrameError
from tiekd_ros.framelog.settings import FrameLogSettings

_LOG = logging.getLogger(__name__)


class FrameStore(Closing):
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
        settings = settings if settings is not None else FrameLogSettings()
        self._db = Database(Path(path), read_only=read_only, timeout_s=settings.lock_timeout_s)
        self._novelty = NoveltyIndex(self._db.path, settings, evicts=evicts)
        self._not_kept: Counter[str] = Counter()

    @property
    def path(self) -> Path:
        """The file."""
        return self._db.path

    @property
    def settings(self) -> FrameLogSettings:
        """Limits of the log; from the first `add` on, split as the log is."""
        return self._novelty.settings

    @property
    def rule(self) -> SplitRule | None:
        """Split of the log; None where its first frame will settle it."""
        with self._db.read() as connection:
            return read_rule(connection)

    def close(self) -> None:
        """Close the file; waits for a change that is under way. Closing twice does no harm."""
        self._db.close()

    def add(self, observation: Observation, label: Label | None = None) -> AddResult:
        """Store an image if it is worth keeping; what is redundant may be evicted for it.

        A `label` that is known already is stored with it, or neither is.

        Raises:
            BadImageError: the image is no uint8 array of shape (H, W, 3).
            BadDepthError: no pixel of the label is known.
        """
        with self._db.write_lock:
            with self._db.read() as connection:
                self._novelty.sync(connection)
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

    def put_label(self, frame_id: int, label: Label) -> None:
        """Store what a teacher said of a frame; an earlier label is replaced.

        The depth's size may differ from the image's, its view must not. It is kept to 1/256 m, up
        to 255 m, and unknown where the image shows what the camera did not see.

        Raises:
            UnknownFrameError: the frame was evicted meanwhile.
            BadDepthError: no pixel is known, or the shapes differ.
            StoreFullError: frame and label alone exceed `max_bytes_mb`, or the disk is full.
        """
        frame_id = int(frame_id)
        with self._db.read() as connection:
            invalid_mask_png = read_invalid_masks(connection, [frame_id]).get(frame_id)
        depth_png, confidence_png = encode_label(label.depth, label.confidence, invalid_mask_png)
        with self._change() as connection:
            teacher = (label.teacher_name, label.teacher_version)
            write_label(connection, frame_id, depth_png, confidence_png, teacher)
            try:
                self._novelty.make_room(connection, keep=frame_id)
            except NoRoomError:
                raise StoreFullError(
                    f"frame {frame_id} and its label alone exceed max_bytes_mb = "
                    f"{self.settings.max_bytes_mb}; raise it"
                ) from None

    def reject(self, frame_id: int, reason: str) -> None:
        """Mark a frame as not to be labelled or used; a label that it has is dropped.

        Raises:
            UnknownFrameError: the frame was evicted meanwhile.
        """
        with self._change() as connection:
            write_rejection(connection, int(frame_id), reason)

    def ask_again(self, frame_ids: Iterable[int], teacher: str) -> int:
        """Drop the labels of these frames that a teacher gave, so that it is asked again.

        Labels of others, such as imported ones, stay; frames that are gone do no harm.

        Returns:
            How many labels were dropped.
        """
        with self._change() as connection:
            return write_unlabelled(connection, frame_ids, teacher)

    def labelled_ids(self, split: Split | None = None, *, after_id: int = 0) -> list[int]:
        """Return the ids of all labelled frames, or of one split's, ordered by stamp.

        With `after_id`, only those that were logged after that frame.
        """
        with self._db.read() as connection:
            return read_labelled_ids(connection, split, after_id)

    def labelled_span(self) -> LabelledSpan:
        """Return how many frames have a label, and how long a time they cover."""
        with self._db.read() as connection:
            return read_labelled_span(connection)

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

    def newest_labels(self, limit: int) -> list[Label]:
        """Return the labels of the newest labelled frames, oldest first, without damaged ones."""
        with self._db.read() as connection:
            rows = read_newest_labels(connection, limit)
        labels = []
        for depth, name, version in rows:
            with suppress(BadDepthError):
                labels.append(Label(decode_depth_png(depth), name, version))
        return labels

    def mark_round_started(self) -> None:
        """Note which labels there are as a round begins; all but these count as new after it.

        Until `mark_round_finished` says that the round is over they count as new as well: a round
        that was killed has seen nothing.
        """
        with self._change() as connection:
            write_round_started(connection)

    def mark_round_finished(self, ids: Iterable[int], round_number: int) -> None:
        """Note that a round is over and trained on these frames; ids that are gone do no harm.

        No label that `mark_round_started` noted counts as new from now on.
        """
        ids = list(ids)
        with self._change() as connection:
            write_round_finished(connection, ids, round_number)

    def stats(self) -> StoreStats:
        """Count what is stored. Waits for no writer."""
        with self._db.read() as connection:
            return count(connection, self.settings.max_bytes, self._not_kept)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._db.write_lock:
            newest_id = self._novelty.newest_id
            try:
                with self._db.write() as connection:
                    yield connection
            except BaseException:
                self._novelty.invalidate(newest_id)
                raise

    def _add(self, observation: Observation, label: Label | None) -> AddResult:
        novelty, stamp_ns = self._novelty, int(observation.stamp_ns)
        if policy.is_too_soon(novelty.settings, stamp_ns, novelty.last_ns):
            return AddResult(None, policy.TOO_SOON)
        stats = measure_image(observation.image)
        fault = policy.quality_fault(novelty.settings, stats)
        if fault is not None:
            return AddResult(None, fault)
        choice, distances = novelty.choose(stats, stamp_ns)
        if choice.split is None:
            return AddResult(None, choice.reason)
        blobs = encode_frame(observation, label, novelty.settings.jpeg_quality)
        try:
            with self._change() as connection:
                if novelty.sync(connection):  # another process was faster
                    choice, distances = novelty.choose(stats, stamp_ns)
                split = choice.split
                if split is None:
                    return AddResult(None, choice.reason)
                frame_id = insert_frame(connection, observation, stats, blobs, split, distances)
                novelty.add(connection, frame_id, stamp_ns, stats.thumbnail, split, distances)
                if label is not None and blobs.depth_png is not None:
                    teacher = (label.teacher_name, label.teacher_version)
                    write_label(connection, frame_id, blobs.depth_png, None, teacher)
                novelty.make_room(connection, keep=frame_id)
        except NoRoomError:
            return AddResult(None, policy.NO_ROOM)
        return AddResult(frame_id, policy.KEPT)


@dataclass
class RecorderSnapshot:
    """The recorder at one moment, for the diagnostics. Counts are since the start."""

    paused: bool = False
    offered: int = 0
    kept: int = 0
    not_kept: Counter[str] = field(default_factory=Counter)
    """Images that the policy refused, by reason."""
    errors: int = 0
    last_error: str = ""
    """The last fault's message; it stays after the fault is over."""
    healthy: bool = True
    """Whether the last image met no fault."""


class Recorder:
    """Stores the images of a live stream, unless it is paused.

    A store that is locked, full or damaged costs the images of that time and nothing else.
    `record` takes as long as the store does, so it has a thread of its caller's to itself; all
    else may be called from any thread.

    Args:
        store: where images are kept.
        on_kept: called with the id of each stored frame, in the thread of `record`.
    """

    def __init__(self, store: FrameStore, on_kept: Callable[[int], None] | None = None) -> None:
        self._store = store
        self._on_kept = on_kept
        self._lock = threading.Lock()
        self._now = RecorderSnapshot()  # guarded by the lock

    @property
    def paused(self) -> bool:
        """Whether no images are stored at present."""
        return self._now.paused

    def record(self, observation: Observation) -> None:
        """Store an image if it is worth keeping; a fault is counted and logged, not raised."""
        with self._lock:
            if self._now.paused:
                return
            self._now.offered += 1
        try:
            self._add(observation)
        except Exception as error:  # the next image may do better
            self._note(error)

    def pause(self) -> None:
        """Store no more images; one that is being stored is finished."""
        with self._lock:
            self._now.paused = True

    def resume(self) -> None:
        """Store images again."""
        with self._lock:
            self._now.paused = False

    def snapshot(self) -> RecorderSnapshot:
        """Return the present state."""
        with self._lock:
            return copy.deepcopy(self._now)

    def _add(self, observation: Observation) -> None:
        verdict = self._store.add(observation)
        with self._lock:
            self._now.healthy = True
            if verdict.frame_id is None:
                self._now.not_kept[verdict.reason] += 1
                return
            self._now.kept += 1
        if self._on_kept is not None:
            self._on_kept(verdict.frame_id)

    def _note(self, error: Exception) -> None:
        text = str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
        with self._lock:
            self._now.errors += 1
            self._now.healthy = False
            is_new, self._now.last_error = text != self._now.last_error, text
        if is_new:  # the same fault again and again is logged once
            _LOG.warning("frame log: %s", text)
