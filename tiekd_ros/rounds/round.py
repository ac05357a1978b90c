"""One round in the worker process: load frames, train, judge, store the candidate."""

from __future__ import annotations

import copy
import itertools
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameStore
from tiekd_ros.method.comparison import compare, constant_predictor, student_predictor
from tiekd_ros.method.confidence import (
    ConfidenceErrors,
    calibrated,
    frame_spreads,
    remember_frames,
)
from tiekd_ros.method.first_student import RANDOM_START, first_student, median_focal
from tiekd_ros.method.losses import describe_unknown
from tiekd_ros.method.samples import Sample
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.rounds.data import FrameReader, open_frames, teachers_of
from tiekd_ros.rounds.gate import GateVerdict, judge_against_incumbent, judge_first
from tiekd_ros.rounds.plan import RoundPlan, check_enough, choose_frames
from tiekd_ros.rounds.trainer import Pause, Trainer, TrainResult, no_pause
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.checkpoint import Student, StudentStatus
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

_REPORT_EVERY_S = 0.5
_PARENT_START = "parent"
CALIBRATED_START = "calibrated base"
"""The start, in its card, of a student that is a calibrated base and was not trained."""


@dataclass(frozen=True)
class RoundData:
    """Frames of a round at the network's size."""

    train: list[Sample]
    held_out: list[Sample]
    train_ids: list[int]
    held_out_ids: list[int]
    size: InputSize
    teacher: str


def run_round(
    state: StateFolder, plan: RoundPlan, number: int, emit: Emit, pause: Pause = no_pause
) -> None:
    """Run one round to its verdict; the candidate is stored, whatever the verdict.

    Does not promote: the process that started the round does.

    Args:
        state: where frames are read from and the candidate is stored.
        plan: all settings.
        number: the round's number, kept in the candidate's card.
        emit: receives stage, progress, undecodable, warning and result events.
        pause: called between training steps and between judged frames; see `trainer.Pause`.

    Raises:
        TiekdError: too few frames, a damaged store or incumbent, training that diverges.
    """
    emit({"event": WorkerEvent.STAGE, "stage": "loading"})
    seed = (plan.train.seed + number) % 2**31  # a refused round is not repeated as it was
    plan = replace(plan, train=replace(plan.train, seed=seed))
    registry = StudentRegistry(state.students)
    live = registry.live()
    incumbent = registry.load(live) if live is not None else None
    parent = _parent_of_candidate(incumbent)
    data = _load(state, plan, parent, emit)
    student = _start_from(parent, data, plan)
    emit({"event": WorkerEvent.STAGE, "stage": "training", "frames": len(data.train)})
    result = _train(student, data, plan, emit, pause)
    emit({"event": WorkerEvent.STAGE, "stage": "judging", "frames": len(data.held_out)})
    verdict = _judge(student, incumbent, data, plan, emit, pause)
    student, quality = with_confidence(student, data.train, data.held_out, plan, pause)
    training = {**student.card.training, **asdict(result), "frame_ids": data.train_ids}
    card = replace(
        student.card,
        parent=live,
        round=number,
        teacher=data.teacher,
        focal_px=median_focal(data.train),
        frames={"train": len(data.train), "held_out": len(data.held_out)},
        training=training,
    )
    store_judged(
        registry,
        Student(card, student.network),
        verdict,
        quality,
        emit,
        train_ids=data.train_ids,
        steps=result.steps,
        train_seconds=round(result.seconds, 2),
    )


def store_judged(
    registry: StudentRegistry,
    candidate: Student,
    verdict: GateVerdict,
    quality: ConfidenceErrors | None,
    emit: Emit,
    *,
    train_ids: Sequence[int] = (),
    **more: float,
) -> None:
    """Store a candidate with its verdict, and emit the round's result.

    Args:
        registry: gets the candidate as a new version.
        candidate: its card says all but the verdict.
        verdict: of the gate.
        quality: of its confidence, where it has one.
        emit: receives the result event.
        train_ids: the frames that it was trained on.
        more: values of the result beside these.
    """
    scores = {
        "baseline": verdict.baseline,
        "before": verdict.before.as_dict(),
        "after": verdict.after.as_dict(),
    }
    judged = replace(
        candidate.card,
        version="",
        created="",
        status=StudentStatus.ACCEPTED if verdict.accepted else StudentStatus.REFUSED,
        reason=verdict.reason,
        scores={
            **scores,
            "checks": [asdict(check) for check in verdict.checks],
            "confidence": {} if quality is None else quality.as_dict(),
        },
    )
    card = registry.add(Student(judged, candidate.network))
    emit(
        {
            "event": WorkerEvent.RESULT,
            "version": card.version,
            "parent": card.parent,
            "accepted": verdict.accepted,
            "reason": verdict.reason,
            **scores,
            "train_frames": card.frames["train"],
            "held_out_frames": card.frames["held_out"],
            "train_ids": list(train_ids),
            "train_seconds": 0.0,
            **more,
        }
    )


def with_confidence(
    student: Student,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    plan: RoundPlan,
    pause: Pause,
) -> tuple[Student, ConfidenceErrors | None]:
    """Return a student that knows how sure it is, and how well it does.

    Args:
        student: trained; its network will remember the frames.
        train: what it was trained on.
        held_out: what it was not.
        plan: says what is right.
        pause: called after each frame.
    """
    network = student.network.eval()
    remember_frames(network, train, pause)
    spreads = frame_spreads(network, held_out, pause) if network.has_dpm else []
    found = calibrated(spreads, plan.confidence.tolerance)
    scale, quality = (None, None) if found is None else found
    return replace(student, card=replace(student.card, confidence=scale)), quality


def _load(state: StateFolder, plan: RoundPlan, parent: Student | None, emit: Emit) -> RoundData:
    size = parent.card.input_size if parent is not None else None
    with open_frames(state, size, plan.student, emit) as (store, reader):
        return load_frames(store, reader, plan)


def _parent_of_candidate(incumbent: Student | None) -> Student | None:
    """Return the student whose weights are trained on: the incumbent, None for a first student.

    A calibrated base is replaced, not trained on: its range and scale are those of a dozen
    frames, and now there are more to calibrate the base to.
    """
    if incumbent is None or incumbent.card.training.get("start") == CALIBRATED_START:
        return None
    return incumbent


def load_frames(store: FrameStore, reader: FrameReader, plan: RoundPlan) -> RoundData:
    """Draw and load the frames of a round.

    Args:
        store: the open frame log.
        reader: of this log.
        plan: says how many frames, and the seed of the draw.

    Raises:
        RoundRefusedError: too few labelled frames, counting those that can be loaded.
        StoreCorruptError: the file as a whole is damaged.
    """
    settings, seed = plan.distill, plan.train.seed
    train_ids, held_ids = store.labelled_ids("train"), store.labelled_ids("held_out")
    check_enough(len(train_ids), len(held_ids), settings)
    chosen = choose_frames(train_ids, settings.max_frames, seed)
    chosen_held = choose_frames(held_ids, settings.max_held_out, seed)
    train, held_out = dict(reader.read(chosen)), dict(reader.read(chosen_held))
    missing, missing_held = len(chosen) - len(train), len(chosen_held) - len(held_out)
    check_enough(len(train_ids) - missing, len(held_ids) - missing_held, settings)
    if not train or not held_out or reader.size is None:
        raise RoundRefusedError(
            f"none of the {len(chosen)} training or of the {len(chosen_held)} held-out frames "
            "that were drawn can be read; call again for another draw"
        )
    return RoundData(
        list(train.values()),
        list(held_out.values()),
        list(train),
        list(held_out),
        reader.size,
        teachers_of(store),
    )


def _start_from(parent: Student | None, data: RoundData, plan: RoundPlan) -> Student:
    """Return the student to train: a copy of its parent, or a first one."""
    target = plan.loss.target_width
    if parent is not None:
        card = replace(parent.card, target=target, training={"start": _PARENT_START})
        return Student(card, copy.deepcopy(parent.network))
    return first_student(data.train, data.size, plan.student, target)


def _train(
    student: Student, data: RoundData, plan: RoundPlan, emit: Emit, pause: Pause
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
        message = f"{warning}; loss.objective tiekd leaves it out"
        emit({"event": WorkerEvent.WARNING, "message": message})
    report = ThrottledProgress(emit, "training")
    return trainer.run(lambda progress: report(**asdict(progress)), pause)


def _judge(
    candidate: Student,
    incumbent: Student | None,
    data: RoundData,
    plan: RoundPlan,
    emit: Emit,
    pause: Pause,
) -> GateVerdict:
    bins = candidate.card.bins
    on_frame = frame_reporter(emit, "judging", len(data.held_out), pause)
    reference = (
        constant_predictor(data.held_out, bins)
        if incumbent is None
        else student_predictor(TorchRuntime(incumbent))
    )
    predictor = student_predictor(TorchRuntime(candidate))
    seen = 0 if incumbent is None else bisect_right(data.held_out_ids, _last_frame(incumbent))
    known, new = (
        compare(predictor, reference, frames, bins, on_frame=lambda done: on_frame())
        for frames in (data.held_out[:seen], data.held_out[seen:])
    )
    if incumbent is None:
        return judge_first(new, plan.gate)
    return judge_against_incumbent(known, new, plan.gate)


def _last_frame(student: Student) -> int:
    """Return the newest frame that a student was trained on; ids grow with time."""
    return max(student.card.training.get("frame_ids", ()), default=-1)


def frame_reporter(emit: Emit, stage: str, steps: int, pause: Pause) -> Callable[[], None]:
    """Return what is called after each of `steps` frames: emits progress, and pauses."""
    report, counter = ThrottledProgress(emit, stage), itertools.count(1)

    def on_frame() -> None:
        report(step=next(counter), steps=steps)
        pause()

    return on_frame


class ThrottledProgress:
    """Emits progress at most twice a second, but always the first and the last step."""

    def __init__(self, emit: Emit, stage: str) -> None:
        self._emit = emit
        self._stage = stage
        self._emitted_s = -_REPORT_EVERY_S

    def __call__(self, *, step: int, steps: int, **values: float) -> None:
        """Emit a `progress` event with these values, unless the last was only just emitted."""
        now = time.monotonic()
        if now - self._emitted_s >= _REPORT_EVERY_S or step >= steps:
            self._emitted_s = now
            event = {"event": WorkerEvent.PROGRESS, "stage": self._stage}
            self._emit({**event, "step": step, "steps": steps, **values})
