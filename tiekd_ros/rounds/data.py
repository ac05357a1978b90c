"""Labelled frames of the frame log as samples, for rounds and canary evaluations."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, UndecodableFrameError, UnknownFrameError
from tiekd_ros.method.first_student import StudentSettings, first_input_size
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.student.architecture import InputSize

_LOG = logging.getLogger(__name__)


class FrameReader:
    """Reads labelled frames one by one; passes over those that were evicted or are damaged.

    Args:
        store: the open frame log.
        size: of the samples; None: as `settings` ask for the shape of the first one.
        settings: of a first student.
    """

    def __init__(
        self, store: FrameStore, size: InputSize | None, settings: StudentSettings | None = None
    ) -> None:
        self._store = store
        self.size = size
        self._settings = settings or StudentSettings()
        self.bad_ids: list[int] = []
        """Labelled frames that turned out to be damaged: better rejected in the frame log."""

    def read(self, ids: Iterable[int]) -> Iterator[tuple[int, Sample]]:
        """Yield the frames with their ids, in this order."""
        for frame_id in ids:
            try:
                frame = self._store.load(frame_id)
            except UnknownFrameError:  # evicted meanwhile
                continue
            except UndecodableFrameError as error:
                _LOG.warning("%s", error)
                self.bad_ids.append(frame_id)
                continue
            if self.size is None:
                height, width = frame.image.shape[:2]
                self.size = first_input_size(height, width, self._settings)
            yield frame_id, fit_sample(frame.image, frame.depth, frame.intrinsics, self.size)


@contextmanager
def open_frames(
    state: StateFolder, size: InputSize | None, settings: StudentSettings | None, emit: Emit
) -> Iterator[tuple[FrameStore, FrameReader]]:
    """Open the frame log of a state folder and a reader of it; arguments as for `FrameReader`.

    Damaged frames that it comes upon are named in an `undecodable` event, whatever else happens.
    """
    with FrameStore(state.frames, read_only=True) as store:
        reader = FrameReader(store, size, settings)
        try:
            yield store, reader
        finally:
            if reader.bad_ids:
                emit({"event": WorkerEvent.UNDECODABLE, "ids": reader.bad_ids})


def teachers_of(store: FrameStore) -> str:
    """Return who made the labels of a frame log, for a card."""
    return ", ".join(sorted(store.stats().teachers))
