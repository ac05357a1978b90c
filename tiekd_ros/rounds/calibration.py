"""A round without training in the worker process: the base student fitted to the first labels.

A scale makes the base's depth that of this camera and place (`method.calibration`). What comes of
it is judged as any first student is, on frames that its scale was not fitted to: that of the
earlier half on the later half, and the reverse. The scale of the student that may go live is
fitted to all frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.state import StateFolder
from tiekd_ros.method.calibration import label_factor, scale_for
from tiekd_ros.method.comparison import PairedErrors, compare, constant_predictor, student_predictor
from tiekd_ros.method.confidence import (
    FrameSpread,
    calibrated,
    frame_spreads,
    remember_frames,
)
from tiekd_ros.method.first_student import (
    base_depths,
    calibrated_student,
    first_bins,
    median_focal,
)
from tiekd_ros.method.samples import Sample, spread
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.rounds.data import open_frames, teachers_of
from tiekd_ros.rounds.gate import judge_first
from tiekd_ros.rounds.plan import RoundPlan, check_calibration
from tiekd_ros.rounds.round import CALIBRATED_START, frame_reporter, store_judged
from tiekd_ros.rounds.trainer import Pause, no_pause
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import load_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

MOST_FRAMES = 48
"""Frames that take part, spread over all: a scale needs no more, and each takes time."""
_SUSPICIOUS = 1.5
"""Factor between what the base says and the labels beyond which the focal length is doubted."""


@dataclass(frozen=True)
class CalibrationData:
    """Frames of a calibration, in the order of time, at the network's size."""

    samples: list[Sample]
    size: InputSize
    teacher: str


def run_calibration(
    state: StateFolder, plan: RoundPlan, number: int, emit: Emit, pause: Pause = no_pause
) -> None:
    """Calibrate the base student and judge it; it is stored, whatever the verdict.

    Arguments as for `run_round`. Does not promote: the process that started the round does.

    Raises:
        TiekdError: a student is live, no base ships, too few frames have depth, or the frame log
            or the base is damaged.
    """
    emit({"event": WorkerEvent.STAGE, "stage": "loading"})
    registry = StudentRegistry(state.students)
    data = _load(state, plan, registry.live(), emit)
    samples, count = data.samples, len(data.samples)
    depths = [sample.depth for sample in samples]
    bins, focal_px = first_bins(depths, plan.student), median_focal(samples)
    base = load_base(plan.student.architecture)
    emit({"event": WorkerEvent.STAGE, "stage": "calibrating", "frames": count})
    on_frame = frame_reporter(emit, "calibrating", count, pause)
    said = []
    for depth in base_depths(base, samples, data.size, focal_px):
        said.append(depth)
        on_frame()
    student_of = partial(
        calibrated_student,
        base,
        bins=bins,
        size=data.size,
        focal_px=focal_px,
        target=plan.loss.target_width,
    )
    emit({"event": WorkerEvent.STAGE, "stage": "judging", "frames": count})
    on_frame = frame_reporter(emit, "judging", count, pause)
    errors, spreads = _judge_halves(samples, said, student_of, bins, on_frame)
    verdict = judge_first(errors, plan.gate)
    factor = label_factor(said, depths)
    reason = describe(factor, len(said), verdict.reason, focal_known=focal_px is not None)
    student = student_of(scale_for(factor))
    remember_frames(student.network.eval(), samples, pause)
    confidence = calibrated(spreads, plan.confidence.tolerance)
    card = replace(
        student.card,
        confidence=None if confidence is None else confidence[0],
        round=number,
        teacher=data.teacher,
        focal_px=focal_px,
        frames={"train": count, "held_out": count},  # every one is held out from one half's fit
        training={**student.card.training, "start": CALIBRATED_START},
    )
    store_judged(
        registry,
        Student(card, student.network),
        replace(verdict, reason=reason),
        None if confidence is None else confidence[1],
        emit,
    )


def _load(state: StateFolder, plan: RoundPlan, live: str | None, emit: Emit) -> CalibrationData:
    with open_frames(state, None, plan.student, emit) as (store, reader):
        read = [s for _, s in reader.read(spread(store.labelled_ids(), MOST_FRAMES))]
        samples = [sample for sample in read if np.isfinite(sample.depth).any()]
        check_calibration(len(samples), live, plan.student)
        assert reader.size is not None  # as there is a frame
        return CalibrationData(samples, reader.size, teachers_of(store))


def _judge_halves(
    samples: Sequence[Sample],
    said: Sequence[DepthMap],
    student_of: Callable[[float], Student],
    bins: DepthBins,
    on_frame: Callable[[], None],
) -> tuple[PairedErrors, list[FrameSpread]]:
    """Return the errors on each half of a student that is fitted to the other, and its spreads.

    Compared with the best constant depth of all frames.
    """
    constant = constant_predictor(samples, bins)
    middle = len(samples) // 2
    first, second = slice(None, middle), slice(middle, None)
    errors, spreads = PairedErrors([], []), []
    for fitted, judged in ((second, first), (first, second)):
        student = student_of(
            scale_for(label_factor(said[fitted], [s.depth for s in samples[fitted]]))
        )
        remember_frames(student.network.eval(), samples[fitted])
        spreads += frame_spreads(student.network, samples[judged])
        predictor = student_predictor(TorchRuntime(student, owned=True))
        errors += compare(
            predictor, constant, samples[judged], bins, on_frame=lambda done: on_frame()
        )
    return errors, spreads


def describe(factor: float, frames: int, verdict: str, *, focal_known: bool) -> str:
    """Return what became of the base, and where its scale casts doubt on the focal length.

    Args:
        factor: of all labels over what the base says.
        frames: how many these are.
        verdict: the gate's reason.
        focal_known: whether the camera's focal length was used.
    """
    scale = scale_for(factor)
    text = f"calibrated base: its depth times {scale:.2f}, fitted to {frames} frames; {verdict}"
    if 1 / _SUSPICIOUS <= factor <= _SUSPICIOUS:
        return text
    off = f"{factor:.1f} times too near" if factor > 1 else f"{1 / factor:.1f} times too far"
    why = "may be wrong" if focal_known else "is not known"
    return f"{text}. The base alone sees all {off}: the camera's focal length (camera_info) {why}"
