"""The frames of one round, read from the frame log at the network's size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.framelog import FrameStore, UndecodableFrameError, UnknownFrameError
from tiekd_ros.method.first_student import StudentSettings, first_input_size
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.rounds.plan import RoundPlan, check_enough, choose_frames
from tiekd_ros.student import InputSize

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RoundData:
    """Frames of a round at the network's size."""

    train: list[Sample]
    held_out: list[Sample]
    train_ids: list[int]
    size: InputSize
    teacher: str


class RoundLoader:
    """Draws and loads the frames of a round; passes over those that cannot be decoded."""

    def __init__(self, store: FrameStore, plan: RoundPlan) -> None:
        self._store = store
        self._plan = plan
        self.bad_ids: list[int] = []
        """Labelled frames that turned out to be damaged: better rejected in the frame log."""

    def load(self, size: InputSize | None) -> RoundData:
        """Load at the network's size; None: a first student's, after the first frame's shape.

        Raises:
            RoundRefusedError: too few labelled frames, counting those that can be loaded.
            StoreCorruptError: the file as a whole is damaged.
        """
        settings = self._plan.distill
        train_ids = self._store.labelled_ids("train")
        held_ids = self._store.labelled_ids("held_out")
        check_enough(len(train_ids), len(held_ids), settings)
        chosen = self._choose(train_ids, settings.max_frames)
        chosen_held = self._choose(held_ids, settings.max_held_out)
        samples = _Samples(self._store, self._plan.student, size)
        train, held_out = samples.load(chosen), samples.load(chosen_held)
        self.bad_ids = samples.bad_ids
        missing, missing_held = len(chosen) - len(train), len(chosen_held) - len(held_out)
        check_enough(len(train_ids) - missing, len(held_ids) - missing_held, settings)
        if not train or not held_out or samples.size is None:
            raise RoundRefusedError(
                f"none of the {len(chosen)} training or of the {len(chosen_held)} held-out frames "
                "that were drawn can be read; call again for another draw"
            )
        teacher = ", ".join(sorted(self._store.stats().teachers))
        return RoundData(
            list(train.values()), list(held_out.values()), list(train), samples.size, teacher
        )

    def _choose(self, ids: Sequence[int], limit: int) -> list[int]:
        return choose_frames(ids, limit, self._plan.train.seed)


class _Samples:
    """Loads frames one by one, all to one size; the first one decides where none is given."""

    def __init__(
        self, store: FrameStore, settings: StudentSettings, size: InputSize | None
    ) -> None:
        self._store = store
        self._settings = settings
        self.size = size
        self.bad_ids: list[int] = []

    def load(self, ids: Sequence[int]) -> dict[int, Sample]:
        """Return the samples by id, without what was evicted meanwhile or is damaged."""
        samples = {}
        for frame_id in ids:
            try:
                samples[frame_id] = self._load_one(frame_id)
            except UnknownFrameError:
                continue
            except UndecodableFrameError as error:
                _LOG.warning("%s", error)
                self.bad_ids.append(frame_id)
        return samples

    def _load_one(self, frame_id: int) -> Sample:
        frame = self._store.load(frame_id)
        if self.size is None:
            height, width = frame.image.shape[:2]
            self.size = first_input_size(height, width, self._settings)
        return fit_sample(frame.image, frame.depth, frame.intrinsics, self.size)
