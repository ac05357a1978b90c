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
from tiekd_ros.rounds.gate import PROOF
from tiekd_ros.rounds.round_log import RoundLog
from tiekd_ros.rounds.trainer import Pause, no_pause
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

_LEVEL = 0.8  # of the interval that is told


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
        "how much worse than its predecessor a student may be, relative, in AbsRel and in RMSE",
        minimum=0.0,
        maximum=10.0,
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

    It is clearly worse where AbsRel or RMSE is, as at the gate by the geometric mean of the frames'
    ratios, by more than the tolerance in nine of ten bootstrap draws of the frames: a few frames
    that are very wrong, of one odd place, prove nothing. Labels that both find to be outliers do
    not count.

    Raises:
        BadDepthError: there is no frame.
    """
    errors = errors.without_outliers()
    after, before = errors.candidate_mean, errors.reference_mean
    words, worse = [], False
    for name, metric, unit in (("AbsRel", "abs_rel", ""), ("RMSE", "rmse", " m")):
        change = errors.change(metric)
        assert change is not None  # each frame has it
        support = float(np.mean(change.drawn > settings.tolerance))
        worse = worse or support >= PROOF
        low, high = change.interval(_LEVEL)
        words.append(
            f"{name} {change.before:.3f} -> {change.after:.3f}{unit} ({change.relative:+.1%}, "
            f"interval {low:+.1%} to {high:+.1%})"
        )
    reason = (
        f"on {len(errors)} frames since its promotion {', '.join(words)} against its predecessor; "
        f"{'clearly' if worse else 'not clearly'} more than {settings.tolerance:.1%} worse"
    )
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
