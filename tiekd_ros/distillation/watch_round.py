"""Judging a promoted student anew, in the worker process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from tiekd_ros.distillation.metrics import DepthMetrics, depth_metrics
from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.round_log import RoundLog
from tiekd_ros.distillation.samples import Sample, fit_sample
from tiekd_ros.distillation.trainer import Rest, no_rest
from tiekd_ros.distillation.watch import WatchVerdict, judge_watched
from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import FrameStore, UndecodableFrameError, UnknownFrameError
from tiekd_ros.state import StateFolder
from tiekd_ros.student import DepthBins, Runtime, StudentRegistry, TorchRuntime

_LOG = logging.getLogger(__name__)


def run_watch(
    state: StateFolder,
    plan: RoundPlan,
    number: int,
    emit: Callable[[dict[str, Any]], None],
    rest: Rest = no_rest,
) -> None:
    """Judge the student that a round promoted, and its predecessor, on the newest frames since.

    Changes nothing but by what it says: `undecodable` and `result` events.

    Args:
        state: where everything is read from.
        plan: its group `watch` says how many frames, and what is worse.
        number: of the round whose student is watched.
        emit: receives the events. A result without `worse` is no verdict: too few frames could
            be read and have depth within the student's range.
        rest: called between frames; see `trainer.Rest`.

    Raises:
        TiekdError: there is no such watch, or a student or the frame log cannot be used.
    """
    record = RoundLog(state.rounds).record(number)
    if record is None or record.watch is None or record.version is None:
        raise TiekdError(f"round {number} has no student to be watched")
    registry = StudentRegistry(state.students)
    both = [
        TorchRuntime(registry.load(version))
        for version in (record.version, record.watch.predecessor)
    ]
    with FrameStore(state.frames, read_only=True) as store:
        frames = _Frames(store, both[0], store.labelled_ids(after_id=record.watch.after_id))
        watched, predecessor = _compare(both, frames, plan.watch.frames, rest)
    if frames.bad_ids:
        emit({"event": "undecodable", "ids": frames.bad_ids})
    if len(watched) < plan.watch.frames:
        emit({"event": "result", "frames": len(watched)})
        return
    emit(_result(judge_watched(watched, predecessor, plan.watch)))


def _result(verdict: WatchVerdict) -> dict[str, Any]:
    return {
        "event": "result",
        "frames": verdict.frames,
        "worse": verdict.worse,
        "reason": verdict.reason,
        "before": verdict.before.as_dict(),
        "after": verdict.after.as_dict(),
    }


def _compare(
    students: Sequence[Runtime], samples: Iterable[Sample], count: int, rest: Rest
) -> tuple[list[DepthMetrics], ...]:
    """Return each student's errors on the first `count` samples that have depth in the range.

    The range is the first student's, so that all are judged on the same pixels.
    """
    bins = students[0].card.bins
    errors: tuple[list[DepthMetrics], ...] = tuple([] for _ in students)
    for sample in samples:
        each = [_errors(student, sample, bins) for student in students]
        found = [one for one in each if one is not None]
        if len(found) == len(students):
            for mine, one in zip(errors, found, strict=True):
                mine.append(one)
        rest()
        if len(errors[0]) == count:
            break
    return errors


class _Frames:
    """Reads frames at a student's size one by one, the newest first; passes over damaged ones."""

    def __init__(self, store: FrameStore, student: Runtime, ids: list[int]) -> None:
        self._store = store
        self._size = student.card.input_size
        self._ids = ids
        self.bad_ids: list[int] = []

    def __iter__(self) -> Iterator[Sample]:
        for frame_id in reversed(self._ids):
            with suppress(UnknownFrameError):  # evicted meanwhile
                try:
                    frame = self._store.load(frame_id)
                except UndecodableFrameError as error:
                    _LOG.warning("%s", error)
                    self.bad_ids.append(frame_id)
                    continue
                yield fit_sample(frame.image, frame.depth, frame.intrinsics, self._size)


def _errors(runtime: Runtime, sample: Sample, bins: DepthBins) -> DepthMetrics | None:
    predicted = runtime.predict(sample.image, confidence=False).depth
    return depth_metrics(predicted, sample.depth, bins.min_depth_m, bins.max_depth_m)
