"""The canary evaluation of a promoted student: its policy, and how a worker carries it out.

The gate judged the student on frames of the places that the robot knew by then. Once enough
newer ones have their labels, it is compared with its predecessor again, frame by frame: neither
was trained on them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.core.state import StateFolder
from tiekd_ros.method.comparison import PairedErrors, compare, student_predictor
from tiekd_ros.method.metrics import FrameMetrics
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.rounds.data import open_frames
from tiekd_ros.rounds.round_log import RoundLog
from tiekd_ros.rounds.trainer import Pause, no_pause
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime


@dataclass(frozen=True)
class CanarySettings(Settings):
    """When a promoted student is compared with its predecessor, and what speaks against it."""

    enabled: bool = setting(
        True,
        "judge a promoted student on frames that came after its promotion, and go back to its "
        "predecessor where it is clearly worse",
    )
    frames: int = setting(
        32, "newly labelled frames that are waited for, and judged", minimum=4, maximum=10_000
    )
    tolerance: float = setting(
        0.05,
        "how much worse than its predecessor a student may be, relative (mean of AbsRel and RMSE)",
        minimum=0.0,
        maximum=10.0,
    )
    support: float = setting(
        0.65,
        "least share of the frames on which it has to be worse by more than the tolerance, each "
        "for itself, before anything is rolled back",
        minimum=0.5,
        maximum=1.0,
    )


@dataclass(frozen=True)
class CanaryVerdict:
    """Clearly worse or not, why, and the scores behind it (means over the frames)."""

    worse: bool
    reason: str
    frames: int
    before: FrameMetrics
    """Of the predecessor."""
    after: FrameMetrics
    """Of the promoted student."""


def judge_canary(errors: PairedErrors, settings: CanarySettings) -> CanaryVerdict:
    """Judge a live student by its errors and those of its predecessor, paired by frame.

    It is clearly worse where its mean errors are, by more than the tolerance, and most frames say
    the same each for itself: a few frames that are very wrong, of one doubtful label or one odd
    place, prove nothing, and neither do many that are a trifle worse.

    Raises:
        BadDepthError: there is no frame.
    """
    after, before = errors.candidate_mean, errors.reference_mean
    abs_rel, rmse = errors.ratio("abs_rel") - 1, errors.ratio("rmse") - 1
    change = 0.5 * (abs_rel + rmse)
    each = 0.5 * ((errors.frame_ratios("abs_rel") - 1) + (errors.frame_ratios("rmse") - 1))
    support = float(np.mean(each > settings.tolerance))
    reason = (
        f"on {len(errors)} frames since its promotion AbsRel {before.abs_rel:.3f} -> "
        f"{after.abs_rel:.3f} ({abs_rel:+.1%}), RMSE {before.rmse:.3f} -> {after.rmse:.3f} m "
        f"({rmse:+.1%}) against its predecessor; more than {settings.tolerance:.1%} worse on "
        f"{support:.0%} of them ({settings.support:.0%} would be needed)"
    )
    worse = change > settings.tolerance and support >= settings.support
    return CanaryVerdict(worse, reason, len(errors), before, after)


def evaluate_canary(
    state: StateFolder, settings: CanarySettings, number: int, emit: Emit, pause: Pause = no_pause
) -> None:
    """Judge the student that a round promoted, and its predecessor, on the newest frames since.

    Changes nothing but by its events: `undecodable` and `result`.

    Args:
        state: where everything is read from.
        settings: how many frames, and what is worse.
        number: of the round whose student is judged.
        emit: receives the events. A result without `worse` is no verdict: too few frames could
            be read and have depth within the student's range.
        pause: called between frames; see `trainer.Pause`.

    Raises:
        TiekdError: there is no such evaluation, or a student or the frame log cannot be used.
    """
    record = RoundLog(state.rounds).record(number)
    if record is None or record.canary is None or record.version is None:
        raise TiekdError(f"round {number} has no student to be evaluated")
    registry = StudentRegistry(state.students)
    student, predecessor = (
        TorchRuntime(registry.load(version))
        for version in (record.version, record.canary.predecessor)
    )
    with open_frames(state, student.card.input_size, None, emit) as (store, reader):
        newest_first = reversed(store.labelled_ids(after_id=record.canary.after_id))
        errors = compare(
            student_predictor(student),
            student_predictor(predecessor),
            (sample for _, sample in reader.read(newest_first)),
            student.card.bins,
            most=settings.frames,
            on_frame=lambda done: pause(),
        )
    if len(errors) < settings.frames:
        emit({"event": WorkerEvent.RESULT, "frames": len(errors)})
        return
    verdict = judge_canary(errors, settings)
    scores = {"before": verdict.before.as_dict(), "after": verdict.after.as_dict()}
    emit({"event": WorkerEvent.RESULT, **asdict(verdict), **scores})
