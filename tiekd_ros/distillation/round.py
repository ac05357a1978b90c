"""One distillation round: load frames, train, judge on held-out frames, store with verdict."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tiekd_ros.distillation.gate import (
    GateVerdict,
    judge_against_incumbent,
    judge_first,
    score_best_constant,
    score_student,
)
from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.distillation.replay import (
    check_enough,
    choose_frames,
    first_bins,
    first_input_size,
    median_focal,
)
from tiekd_ros.distillation.samples import Sample, fit_sample
from tiekd_ros.distillation.trainer import Progress, Trainer, TrainResult
from tiekd_ros.frames import FrameStore, TrainingFrame, UnknownFrameError
from tiekd_ros.state import StateFolder
from tiekd_ros.student import (
    ACCEPTED,
    REFUSED,
    InputSize,
    Student,
    StudentCard,
    StudentRegistry,
    TorchRuntime,
)

Emit = Callable[[dict[str, Any]], None]
"""Receives one event: a dict with `event` (stage, progress, result) and plain values."""

_REPORT_EVERY_S = 0.5


@dataclass(frozen=True)
class RoundData:
    """Frames of a round at the network's size."""

    train: list[Sample]
    held_out: list[Sample]
    train_ids: list[int]
    teacher: str


def run_round(state: StateFolder, plan: RoundPlan, number: int, emit: Emit) -> None:
    """Run one round to its verdict; the candidate is stored, whatever the verdict.

    Does not promote: whoever started the round does.

    Args:
        state: where frames are read from and the candidate is stored.
        plan: all settings.
        number: the round's number, kept in the candidate's card.
        emit: receives stage, progress and result events.

    Raises:
        TiekdError: too few frames, a damaged store or incumbent, training that diverges.
    """
    emit({"event": "stage", "stage": "loading"})
    registry = StudentRegistry(state.students)
    live = registry.live()
    incumbent = registry.load(live) if live is not None else None
    with FrameStore(state.frames, read_only=True) as store:
        start, data = _load(store, plan, incumbent)
    emit({"event": "stage", "stage": "training", "frames": len(data.train)})
    result = _train(start, data, plan, incumbent is not None, emit)
    emit({"event": "stage", "stage": "judging", "frames": len(data.held_out)})
    verdict = _judge(start, incumbent, data.held_out, plan)
    card = registry.add(
        Student(_final_card(start.card, number, data, result, verdict), start.network)
    )
    emit(
        {
            "event": "result",
            "version": card.version,
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
    )


def _load(
    store: FrameStore, plan: RoundPlan, incumbent: Student | None
) -> tuple[Student, RoundData]:
    """Read the frames and make the student to train: a copy of the incumbent, or a fresh one."""
    train_ids, held_ids = store.labelled_ids("train"), store.labelled_ids("held_out")
    check_enough(len(train_ids), len(held_ids), plan.distill)
    seed = plan.train.seed
    train_ids = choose_frames(train_ids, plan.distill.max_frames, seed)
    held_ids = choose_frames(held_ids, plan.distill.max_held_out, seed)
    first = store.load(train_ids[0])
    if incumbent is not None:
        size = incumbent.card.input_size
    else:
        size = first_input_size(first.image.shape[0], first.image.shape[1], plan.student)

    def load(ids: Sequence[int]) -> list[Sample]:
        samples = []
        for frame_id in ids:
            with contextlib.suppress(UnknownFrameError):  # evicted meanwhile
                samples.append(_fit(store.load(frame_id), size))
        return samples

    teacher = ", ".join(sorted(store.stats().teachers))
    data = RoundData(load(train_ids), load(held_ids), train_ids, teacher)
    if incumbent is not None:
        card = replace(incumbent.card, target=plan.loss.target_width)
        return Student(card, copy.deepcopy(incumbent.network)), data
    bins = first_bins([s.depth for s in data.train], plan.student)
    card = StudentCard(bins=bins, input_size=size, target=plan.loss.target_width)
    return Student.fresh(card), data


def _fit(frame: TrainingFrame, size: InputSize) -> Sample:
    return fit_sample(frame.image, frame.depth, frame.intrinsics, size)


def _train(
    student: Student, data: RoundData, plan: RoundPlan, has_parent: bool, emit: Emit
) -> TrainResult:
    trainer = Trainer(
        student.network,
        data.train,
        plan.train,
        loss=plan.loss,
        augmentation=plan.augment,
        has_parent=has_parent,
    )
    reported = -_REPORT_EVERY_S

    def report(progress: Progress) -> None:
        nonlocal reported
        now = time.monotonic()
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            emit({"event": "progress", "stage": "training", **asdict(progress)})

    return trainer.run(report)


def _judge(
    candidate: Student, incumbent: Student | None, held_out: Sequence[Sample], plan: RoundPlan
) -> GateVerdict:
    bins = candidate.card.bins
    after = score_student(TorchRuntime(candidate), held_out, bins)
    if incumbent is None:
        return judge_first(after, score_best_constant(held_out, bins), plan.gate)
    before = score_student(TorchRuntime(incumbent), held_out, bins)
    return judge_against_incumbent(after, before, plan.gate)


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
        training={**asdict(result), "frame_ids": data.train_ids},
    )
