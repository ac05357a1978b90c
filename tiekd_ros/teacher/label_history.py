"""What one teacher's last labels were like, and when labels that were doubted become usual.

Logarithms of metres throughout: a factor is a distance.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap

_LEAST_SHARE = 0.05  # of the pixels that label and student must share to be compared
_RANGE_MARGIN = 0.05  # a student says "its range's end" for everything beyond


@dataclass(frozen=True, eq=False)
class StudentView:
    """What the live student says of a frame: float32 metres (H, W), and the range it knows."""

    depth: DepthMap
    version: str
    min_depth_m: float
    max_depth_m: float


@dataclass(frozen=True)
class Answer:
    """What a label says of scale, and what it was doubted for, so far as that may settle."""

    frame: object
    """Tells frames apart: one that is asked for again counts once."""
    median: float
    factor: float | None
    """To what the student sees; None where it cannot be compared."""
    is_believed: bool = True
    is_jump: bool = False
    is_against_student: bool = False


class LabelHistory:
    """The labels of one teacher: those that were believed, and the last answers of any kind.

    Args:
        length: labels and answers that are kept.
        least: believed labels from which on others are compared with them.
    """

    def __init__(self, length: int, least: int) -> None:
        self.medians: deque[float] = deque(maxlen=length)
        self.factors: deque[float] = deque(maxlen=length)
        self.student = ""
        """Version that the factors are of."""
        self.student_offset = 0.0
        """Factor to a student that was found to be far off, again and again."""
        self.since_settled: int | None = None
        """Labels believed since doubted ones became usual; None where none ever did."""
        self._least = least
        self._is_known = False
        self._answers: deque[Answer] = deque(maxlen=length)

    @property
    def is_known(self) -> bool:
        """Whether there are, or were once, enough labels to compare others with."""
        return self._is_known

    @property
    def knows_factor(self) -> bool:
        """Whether there are enough labels that the student was compared with."""
        return len(self.factors) >= self._least

    def meet_student(self, version: str) -> None:
        """Forget the factors to another student."""
        if version != self.student:
            self.student = version
            self.student_offset = 0.0
            self.factors.clear()

    def believe(self, answer: Answer) -> None:
        """Take in a label."""
        self.note(answer)
        self.remember(answer.median)
        if answer.factor is not None:
            self.factors.append(answer.factor)
        if self.since_settled is not None:
            self.since_settled += 1

    def remember(self, median: float) -> None:
        """Take in the median depth of a label that was believed earlier."""
        self.medians.append(median)
        self._is_known = self._is_known or len(self.medians) >= self._least

    def note(self, answer: Answer) -> None:
        """Take in an answer, believed or not, in place of an earlier one for its frame."""
        kept = [before for before in self._answers if before.frame != answer.frame]
        self._answers.clear()
        self._answers.extend([*kept, answer])

    def settle_jump(self, answer: Answer, limit: float, settle: int) -> bool:
        """Take a jump for usual where enough of the last answers are of about its scale.

        A robot that goes to and fro between two places then has both; one that has left the
        first has only the new one.
        """
        agreeing = _agreeing([(a, a.median) for a in self._answers if a.is_jump], answer, limit)
        if len(agreeing) < settle:
            return False
        answers = list(self._answers)
        since = answers[answers.index(agreeing[0]) :]
        self.medians.clear()
        self.medians.extend(
            a.median for a in since if a.frame != answer.frame and (a.is_believed or a in agreeing)
        )
        self.factors.clear()
        self._acquit(agreeing, is_jump=False)
        return True

    def settle_factor(self, answer: Answer, limit: float, settle: int) -> bool:
        """Take the student for the one that is off, where enough answers say so alike."""
        against = [(a, a.factor) for a in self._answers if a.is_against_student]
        pairs = [(a, factor) for a, factor in against if factor is not None]
        agreeing = _agreeing(pairs, answer, limit)
        if len(agreeing) < settle:
            return False
        self.student_offset = float(np.median([f for a, f in pairs if a in agreeing]))
        self._acquit(agreeing, is_against_student=False)
        return True

    def _acquit(self, settled: list[Answer], **flags: bool) -> None:
        self.since_settled = 0
        answers = list(self._answers)
        self._answers.clear()
        for answer in answers:
            if answer in settled:
                free = replace(answer, **flags)
                doubted = free.is_jump or free.is_against_student
                self._answers.append(replace(free, is_believed=not doubted))
            else:
                self._answers.append(answer)


def _agreeing(pairs: list[tuple[Answer, float]], answer: Answer, limit: float) -> list[Answer]:
    """Return the most answers, this one among them, whose values lie within `limit`."""
    own = next(value for a, value in pairs if a.frame == answer.frame)
    lowest = [value for _, value in pairs if own - limit <= value <= own]
    spans = [[a for a, value in pairs if low <= value <= low + limit] for low in lowest]
    return max(spans, key=len)


def log_factor(depth: DepthMap, student: StudentView) -> float | None:
    """Return the logarithm of the median factor between a label and a student's depth.

    None where they share too few pixels: what the student sees at its range's ends says nothing.
    """
    seen = student.depth
    low = student.min_depth_m * (1 + _RANGE_MARGIN)
    high = student.max_depth_m * (1 - _RANGE_MARGIN)
    shared: npt.NDArray[np.bool_] = (depth > 0) & np.isfinite(depth) & (seen > low) & (seen < high)
    if shared.mean() < _LEAST_SHARE:
        return None
    return float(np.median(np.log(depth[shared] / seen[shared])))


def exp_median(logarithms: deque[float]) -> float:
    """Return the median of what these are the logarithms of; NaN where there is none."""
    return math.exp(float(np.median(logarithms))) if logarithms else math.nan
