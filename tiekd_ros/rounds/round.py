"""Judging a promoted student anew, in the worker process."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore, UndecodableFrameError, UnknownFrameError
from tiekd_ros.method.first_student import RANDOM_START, first_student, median_focal
from tiekd_ros.method.metrics import DepthMetrics, depth_metrics
from tiekd_ros.method.objectives import describe_unknown
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.rounds.canary import WatchVerdict, judge_watched
from tiekd_ros.rounds.data import RoundData, RoundLoader
from tiekd_ros.rounds.gate import (
    GateVerdict,
    judge_against_incumbent,
    judge_first,
    score_best_constant,
    score_student,
)
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundLog
from tiekd_ros.rounds.trainer import Progress, Rest, Trainer, TrainResult, no_rest
from tiekd_ros.student import (
    ACCEPTED,
    REFUSED,
    DepthBins,
    Runtime,
    Student,
    StudentCard,
    StudentRegistry,
    TorchRuntime,
)

Emit = Callable[[dict[str, Any]], None]
"""Receives an event: `event` (stage, progress, undecodable, warning, result), plain values."""

_REPORT_EVERY_S = 0.5
_PARENT_START = "parent"


def run_round(
    state: StateFolder, plan: RoundPlan, number: int, emit: Emit, rest: Rest = no_rest
) -> None:
    """Run one round to its verdict; the candidate is stored, whatever the verdict.

    Does not promote: whoever started the round does.

    Args:
        state: where frames are read from and the candidate is stored.
        plan: all settings.
        number: the round's number, kept in the candidate's card.
        emit: receives stage, progress, undecodable, warning and result events.
        rest: called between training steps and between judged frames; see `trainer.Rest`.

    Raises:
        TiekdError: too few frames, a damaged store or incumbent, training that diverges.
    """
    emit({"event": "stage", "stage": "loading"})
    seed = (plan.train.seed + number) % 2**31  # a refused round is not repeated as it was
    plan = replace(plan, train=replace(plan.train, seed=seed))
    registry = StudentRegistry(state.students)
    live = registry.live()
    incumbent = registry.load(live) if live is not None else None
    data = _load(state, plan, incumbent, emit)
    student = _start_from(incumbent, data, plan)
    emit({"event": "stage", "stage": "training", "frames": len(data.train)})
    result = _train(student, data, plan, emit, rest)
    emit({"event": "stage", "stage": "judging", "frames": len(data.held_out)})
    verdict = _judge(student, incumbent, data.held_out, plan, emit, rest)
    card = registry.add(
        Student(_final_card(student.card, number, data, result, verdict), student.network)
    )
    emit(_round_result(card, verdict, data, result))


def _load(state: StateFolder, plan: RoundPlan, incumbent: Student | None, emit: Emit) -> RoundData:
    with FrameStore(state.frames, read_only=True) as store:
        loader = RoundLoader(store, plan)
        try:
            return loader.load(incumbent.card.input_size if incumbent is not None else None)
        finally:
            if loader.bad_ids:
                emit({"event": "undecodable", "ids": loader.bad_ids})


def _start_from(incumbent: Student | None, data: RoundData, plan: RoundPlan) -> Student:
    """Make the student to train: a copy of the incumbent, or a first one."""
    target = plan.loss.target_width
    if incumbent is not None:
        card = replace(incumbent.card, target=target, training={"start": _PARENT_START})
        return Student(card, copy.deepcopy(incumbent.network))
    return first_student(data.train, data.size, plan.student, target)


def _train(
    student: Student, data: RoundData, plan: RoundPlan, emit: Emit, rest: Rest
) -> TrainResult:
    trainer = Trainer(
        student.network,
        data.train,
        plan.train,
        loss=plan.loss,
        augmentation=plan.augment,
        has_parent=student.card.training["start"] != RANDOM_START,
    )
    warning = describe_unknown(plan.loss.objective, [s.depth for s in data.train])
    if warning:
        emit({"event": "warning", "message": f"{warning}; loss.objective tiekd leaves it out"})
    throttled = _Throttle(emit)

    def report(progress: Progress) -> None:
        throttled({"event": "progress", "stage": "training", **asdict(progress)})

    return trainer.run(report, rest)


def _judge(
    candidate: Student,
    incumbent: Student | None,
    held_out: Sequence[Sample],
    plan: RoundPlan,
    emit: Emit,
    rest: Rest,
) -> GateVerdict:
    bins = candidate.card.bins
    throttled = _Throttle(emit)
    steps = len(held_out) * (1 if incumbent is None else 2)

    def score(student: Student, before: int) -> DepthMetrics:
        def report(done: int) -> None:
            step = before + done
            throttled({"event": "progress", "stage": "judging", "step": step, "steps": steps})
            rest()

        return score_student(TorchRuntime(student), held_out, bins, report)

    after = score(candidate, 0)
    if incumbent is None:
        return judge_first(after, score_best_constant(held_out, bins), plan.gate)
    before = score(incumbent, len(held_out))
    return judge_against_incumbent(after, before, plan.gate)


class _Throttle:
    """Passes progress on at most twice a second, but always the first and the last step."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._passed_at = -_REPORT_EVERY_S

    def __call__(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._passed_at >= _REPORT_EVERY_S or event["step"] >= event["steps"]:
            self._passed_at = now
            self._emit(event)


def _round_result(
    card: StudentCard, verdict: GateVerdict, data: RoundData, result: TrainResult
) -> dict[str, Any]:
    return {
        "event": "result",
        "version": card.version,
        "parent": card.parent,
        "accepted": verdict.accepted,
        "reason": verdict.reason,
        "baseline": verdict.baseline,
        "before": verdict.before.as_dict(),
        "after": verdict.after.as_dict(),
        "train_frames": len(data.train),
        "held_out_frames": len(data.held_out),
        "train_ids": data.train_ids,
        "steps": result.steps,
        "train_seconds": round(result.seconds, 2),
    }


def _final_card(
    card: StudentCard, number: int, data: RoundData, result: TrainResult, verdict: GateVerdict
) -> StudentCard:
    return replace(
        card,
        parent=card.version or None,
        version="",
        created="",
        round=number,
        status=ACCEPTED if verdict.accepted else REFUSED,
        reason=verdict.reason,
        teacher=data.teacher,
        focal_px=median_focal(data.train),
        frames={"train": len(data.train), "held_out": len(data.held_out)},
        scores={
            "baseline": verdict.baseline,
            "before": verdict.before.as_dict(),
            "after": verdict.after.as_dict(),
        },
        training={
            "start": card.training["start"],
            **asdict(result),
            "frame_ids": data.train_ids,
        },
    )


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
