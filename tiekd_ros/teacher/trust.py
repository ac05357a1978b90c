"""Whether a label fits what was seen before: the teacher's own labels, and the live student.

What is compared is scale: a teacher that suddenly answers in millimetres, or without the camera's
intrinsics, draws good pictures whose depth is wrong everywhere by one factor.

A robot that drives out of a corridor sees another depth as well. So a label is doubted only where
its median depth lies far outside that of the last labels and the student does not see the same
change. After `settle` doubted labels that agree with each other the place is taken for new, unless
the jump is so large (`max_settled_jump`) that only another unit explains it. Where labels fit those
before and only contradict the student, alike, the student is taken to be off. Logarithms of metres
throughout: a factor is a distance.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.labels import Label, StudentDepth
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.teacher.errors import TeacherAnswerError
from tiekd_ros.teacher.protocol import TeacherIdentity

_LOG = logging.getLogger(__name__)
_TEACHERS = 4  # as many have a history: during a rolling update two take turns
_LEAST_SHARE = 0.05  # of the pixels that label and student must share to be compared
_RANGE_MARGIN = 0.05  # a student says "its range's end" for everything beyond


@dataclass(frozen=True)
class TrustSettings(Settings):
    """How far a label may differ from what was seen before."""

    max_scale_jump: float = setting(
        4.0,
        "largest factor by which a label's median depth may lie outside that of the last labels, "
        "unless the live student sees the same change; 0 = any",
        minimum=0.0,
        maximum=1e6,
    )
    max_student_factor: float = setting(
        20.0,
        "largest factor between a label and the live student's depth of the same frame; 0 = any",
        minimum=0.0,
        maximum=1e6,
    )
    history: int = setting(30, "labels that a label is compared with", minimum=1, maximum=1000)
    min_history: int = setting(
        8, "labels of one teacher before the next is compared with them", minimum=1, maximum=1000
    )
    settle: int = setting(
        6,
        "doubted labels among the last `history` answers that agree with each other and are then "
        "believed, since the place is new, or the student off; 0 = never",
        minimum=0,
        maximum=1000,
    )
    max_settled_jump: float = setting(
        20.0,
        "largest factor of a jump that may settle; beyond, depth is likely in another unit",
        minimum=1.0,
        maximum=1e6,
    )
    student: bool = setting(
        True, "compare with the live student, on one CPU thread, once a label; drift needs it"
    )
    max_flip_difference: float = setting(
        0.0,
        "largest median relative difference to the depth of the mirrored image, which is asked "
        "for as well and doubles the teacher's work; about 0.1 is strict; 0 = not asked for. A "
        "teacher that refuses mirrored images, such as `recorded`, is not judged by it",
        minimum=0.0,
        maximum=1.0,
    )

    def check(self) -> None:
        """Refuse factors that nothing passes, and a history that is never long enough."""
        for name in ("max_scale_jump", "max_student_factor"):
            factor = getattr(self, name)
            if 0 < factor < 1.01:
                raise InvalidSettingError(
                    f"{name} must be greater than 1 (1.01 at least), or 0 for any, got {factor:g}"
                )
        if self.min_history > self.history:
            raise InvalidSettingError(
                f"min_history must be at most history = {self.history}, got {self.min_history}"
            )
        if self.settle == 1 or self.settle > self.history:
            raise InvalidSettingError(
                f"settle must be 2 to history = {self.history}, or 0 for never, got {self.settle}: "
                "one doubted label agrees with nothing but itself"
            )

    @property
    def needs_student(self) -> bool:
        """Whether anything is compared with the live student."""
        return self.student and (self.max_scale_jump > 0 or self.max_student_factor > 0)


@dataclass(frozen=True)
class LabelScale:
    """A label's scale as logarithms, and what it was doubted for, so far as that may settle."""

    frame: object
    """Tells frames apart: one that is asked for again counts once."""
    median: float
    """Of the label's depth, log metres."""
    factor: float | None
    """Of the label to the student's depth; None where they cannot be compared."""
    is_believed: bool = True
    is_jump: bool = False
    is_against_student: bool = False


class LabelHistory:
    """The scales of one teacher's labels: of those that were believed, and of all the last.

    Args:
        length: scales of each kind that are kept.
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
        self.is_ready = False
        """Whether there are, or were once, enough labels to compare others with."""
        self._least = least
        self._scales: deque[LabelScale] = deque(maxlen=length)

    @property
    def has_factors(self) -> bool:
        """Whether there are enough labels that the student was compared with."""
        return len(self.factors) >= self._least

    def set_student(self, version: str) -> None:
        """Forget the factors to another student."""
        if version != self.student:
            self.student = version
            self.student_offset = 0.0
            self.factors.clear()

    def accept(self, scale: LabelScale) -> None:
        """Add a label that is believed."""
        self.record(scale)
        self.add_median(scale.median)
        if scale.factor is not None:
            self.factors.append(scale.factor)
        if self.since_settled is not None:
            self.since_settled += 1

    def add_median(self, median: float) -> None:
        """Add the median depth, log metres, of a label that is believed."""
        self.medians.append(median)
        self.is_ready = self.is_ready or len(self.medians) >= self._least

    def record(self, scale: LabelScale) -> None:
        """Add a scale, believed or not, in place of an earlier one of its frame."""
        kept = [before for before in self._scales if before.frame != scale.frame]
        self._scales.clear()
        self._scales.extend([*kept, scale])

    def settle_jump(self, scale: LabelScale, limit: float, settle: int) -> bool:
        """Take a jump for usual where enough of the last scales are about the same.

        A robot that goes to and fro between two places then has both; one that has left the
        first has only the new one.

        Args:
            scale: of the newest label, recorded already.
            limit: logarithm of the largest factor within which scales agree.
            settle: how many have to agree.
        """
        agreeing = _largest_agreeing(
            [(a, a.median) for a in self._scales if a.is_jump], scale, limit
        )
        if len(agreeing) < settle:
            return False
        scales = list(self._scales)
        since = scales[scales.index(agreeing[0]) :]
        self.medians.clear()
        self.medians.extend(
            a.median for a in since if a.frame != scale.frame and (a.is_believed or a in agreeing)
        )
        self.factors.clear()
        self._clear_doubt(agreeing, is_jump=False)
        return True

    def settle_factor(self, scale: LabelScale, limit: float, settle: int) -> bool:
        """Take the student for the one that is off, where enough labels say so alike.

        Arguments as `settle_jump`.
        """
        against = [(a, a.factor) for a in self._scales if a.is_against_student]
        pairs = [(a, factor) for a, factor in against if factor is not None]
        agreeing = _largest_agreeing(pairs, scale, limit)
        if len(agreeing) < settle:
            return False
        self.student_offset = float(np.median([f for a, f in pairs if a in agreeing]))
        self._clear_doubt(agreeing, is_against_student=False)
        return True

    def _clear_doubt(self, settled: list[LabelScale], **flags: bool) -> None:
        self.since_settled = 0
        scales = list(self._scales)
        self._scales.clear()
        for scale in scales:
            if scale in settled:
                free = replace(scale, **flags)
                doubted = free.is_jump or free.is_against_student
                self._scales.append(replace(free, is_believed=not doubted))
            else:
                self._scales.append(scale)


def _largest_agreeing(
    pairs: list[tuple[LabelScale, float]], scale: LabelScale, limit: float
) -> list[LabelScale]:
    """Return the most scales, this one among them, whose values lie within `limit`."""
    own = next(value for a, value in pairs if a.frame == scale.frame)
    lowest = [value for _, value in pairs if own - limit <= value <= own]
    spans = [[a for a, value in pairs if low <= value <= low + limit] for low in lowest]
    return max(spans, key=len)


def log_factor(depth: DepthMap, student: StudentDepth) -> float | None:
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


@dataclass(frozen=True)
class TrustSnapshot:
    """What labels are compared with now."""

    teacher: TeacherIdentity | None
    """Who gave the last label."""
    changes: int
    """How many other teachers came after the first; two that take turns count once."""
    compared: int
    """Labels in the history of that teacher."""
    median_m: float
    """Median depth of the last labels; NaN where there is none."""
    student_factor: float
    """Median factor between the last labels and the live student; NaN where it is not known."""
    settled: int
    """How often doubted labels became usual."""
    settled_lately: bool
    """Whether they did so, for this teacher, within the last `history` labels."""


class LabelJudge:
    """Compares labels with those before; safe to use from several threads."""

    def __init__(
        self,
        settings: TrustSettings | None = None,
        past: Iterable[Label] = (),
        on_compared: Callable[[str, float], None] = lambda version, abs_rel: None,
    ) -> None:
        """Begin with the labels of an earlier process, which were believed, oldest first.

        Args:
            settings: how far a label may differ.
            past: the labels.
            on_compared: called with the student's version and its AbsRel against each label that is
                believed, where the label is within the student's range.
        """
        self._on_compared = on_compared
        self.settings = settings or TrustSettings()
        self._lock = threading.Lock()  # guards all below
        self._teacher: TeacherIdentity | None = None
        self._changes = self._settled = 0
        self._histories: OrderedDict[TeacherIdentity, LabelHistory] = OrderedDict()
        for label in past:
            teacher = TeacherIdentity(label.teacher_name, label.teacher_version, metric=True)
            self._history_of(teacher).add_median(_log_median(label.depth))

    def judge(
        self,
        teacher: TeacherIdentity,
        depth: DepthMap,
        student: StudentDepth | None = None,
        *,
        frame_id: int | None = None,
    ) -> None:
        """Believe a label, and remember it; or raise.

        Args:
            teacher: who gave it.
            depth: float32 metres (H, W), NaN = unknown, with at least one known pixel.
            student: the live student's depth of the frame, at the label's size; None where none
                is live.
            frame_id: of the frame; several labels of one frame count once.

        Raises:
            TeacherAnswerError: it does not fit; `reason` is label_scale_jump or
                label_against_student.
        """
        median = _log_median(depth)
        factor = None if student is None else log_factor(depth, student)
        scale = LabelScale(object() if frame_id is None else frame_id, median, factor)
        with self._lock:
            history = self._history_of(teacher)
            if student is not None:
                history.set_student(student.version)
            doubt = self._contradiction(history, scale, student)
            if doubt is not None:
                raise doubt
            history.accept(scale)
        if student is not None and factor is not None:
            within = (depth > student.min_depth_m) & (depth < student.max_depth_m)  # not NaN
            if within.any():
                error = np.abs(depth[within] - student.depth[within]) / depth[within]
                self._on_compared(student.version, float(error.mean()))

    def snapshot(self) -> TrustSnapshot:
        """Return the present state."""
        with self._lock:
            history = self._new_history()
            if self._teacher is not None:
                history = self._histories[self._teacher]
            since = history.since_settled
            return TrustSnapshot(
                self._teacher,
                self._changes,
                len(history.medians),
                exp_median(history.medians),
                exp_median(history.factors),
                self._settled,
                since is not None and since < self.settings.history,
            )

    def _new_history(self) -> LabelHistory:
        return LabelHistory(self.settings.history, self.settings.min_history)

    def _history_of(self, teacher: TeacherIdentity) -> LabelHistory:
        before, self._teacher = self._teacher, teacher
        if teacher not in self._histories:
            self._histories[teacher] = self._new_history()
            if len(self._histories) > _TEACHERS:
                self._histories.popitem(last=False)
            if before is not None:
                self._changes += 1
                _LOG.warning(
                    "the teacher changed from %s %s to %s %s: its labels are compared with its "
                    "own only; the frame log holds both's (teacher.pin keeps to one)",
                    before.name,
                    before.version,
                    teacher.name,
                    teacher.version,
                )
        self._histories.move_to_end(teacher)
        return self._histories[teacher]

    def _contradiction(
        self, history: LabelHistory, scale: LabelScale, student: StudentDepth | None
    ) -> TeacherAnswerError | None:
        """Return what speaks against a label, after what has settled with it."""
        if not history.is_ready:
            return None
        against = self._student_contradiction(history, scale, student)
        jump_by = self._jump_distance(history, scale)
        if against is None and jump_by == 0:
            return None
        may_settle = jump_by <= math.log(self.settings.max_settled_jump)
        noted = replace(
            scale,
            is_believed=False,
            is_jump=jump_by > 0 and may_settle,
            is_against_student=against is not None and may_settle,
        )
        history.record(noted)
        low, high = (math.exp(end(history.medians)) for end in (min, max))
        usual = f"{low:.3g} to {high:.3g} m"
        if noted.is_jump and self._settles_jump(history, noted, usual):
            jump_by = 0.0
        if noted.is_against_student and self._settles_student(history, noted, student):
            against = None
        return against or (self._jump_error(scale, usual) if jump_by else None)

    def _student_contradiction(
        self, history: LabelHistory, scale: LabelScale, student: StudentDepth | None
    ) -> TeacherAnswerError | None:
        most = self.settings.max_student_factor
        if scale.factor is None or student is None or most == 0:
            return None
        off = min(abs(scale.factor), abs(scale.factor - history.student_offset))
        if off <= math.log(most):
            return None
        return TeacherAnswerError(
            f"the label is {math.exp(scale.factor):.3g} times the depth that student "
            f"{student.version} sees, beyond trust.max_student_factor = {most:g}",
            "label_against_student",
        )

    def _jump_distance(self, history: LabelHistory, scale: LabelScale) -> float:
        """Return by what a label lies outside the usual, 0 where it is no jump to doubt."""
        most = self.settings.max_scale_jump
        if most == 0:
            return 0.0
        low, high = min(history.medians), max(history.medians)
        distance = max(low - scale.median, scale.median - high)
        limit = math.log(most)
        if distance <= limit or _student_agrees(history, scale.factor, limit):
            return 0.0
        return distance

    def _jump_error(self, scale: LabelScale, usual: str) -> TeacherAnswerError:
        return TeacherAnswerError(
            f"the label's median depth is {math.exp(scale.median):.3g} m, that of the last labels "
            f"{usual}: a jump beyond trust.max_scale_jump = {self.settings.max_scale_jump:g}, "
            "which no student confirms",
            "label_scale_jump",
        )

    def _settles_jump(self, history: LabelHistory, scale: LabelScale, usual: str) -> bool:
        settle, limit = self.settings.settle, math.log(self.settings.max_scale_jump)
        if settle == 0 or not history.settle_jump(scale, limit, settle):
            return False
        self._settled += 1
        _LOG.warning(
            "%d labels agree on a median depth of about %.3g m, where it was %s: taken for a new "
            "place",
            settle,
            math.exp(scale.median),
            usual,
        )
        return True

    def _settles_student(
        self, history: LabelHistory, scale: LabelScale, student: StudentDepth | None
    ) -> bool:
        settle, limit = self.settings.settle, math.log(self.settings.max_student_factor)
        if settle == 0 or student is None or not history.settle_factor(scale, limit, settle):
            return False
        self._settled += 1
        _LOG.warning(
            "%d labels agree with each other that student %s is off by a factor of about %.3g: "
            "the teacher is believed",
            settle,
            student.version,
            math.exp(history.student_offset),
        )
        return True


def check_flip(depth: DepthMap, mirrored: DepthMap, settings: TrustSettings) -> None:
    """Compare a label with the depth of the mirrored image, which should be its mirror image.

    Args:
        depth: float32 metres (H, W), NaN = unknown.
        mirrored: of the mirrored image, as the teacher gave it.
        settings: holds the limit.

    Raises:
        TeacherAnswerError: it is not, or nothing can be compared; `reason` is label_flip.
    """
    if depth.shape != mirrored.shape:
        raise TeacherAnswerError(
            f"the depth map is {depth.shape}, that of the mirrored image {mirrored.shape}",
            "label_flip",
        )
    back = mirrored[:, ::-1]
    shared = (depth > 0) & np.isfinite(depth) & (back > 0) & np.isfinite(back)
    if not shared.any():
        raise TeacherAnswerError(
            "no pixel is known in both the depth map and that of the mirrored image", "label_flip"
        )
    one, other = depth[shared], back[shared]
    difference = float(np.median(np.abs(one - other) / np.maximum(one, other)))
    if difference > settings.max_flip_difference:
        raise TeacherAnswerError(
            f"the depth of the mirrored image differs by {difference:.1%} (median), beyond "
            f"trust.max_flip_difference = {settings.max_flip_difference:.1%}",
            "label_flip",
        )


def _log_median(depth: DepthMap) -> float:
    known = depth[np.isfinite(depth) & (depth > 0)]
    return float(np.log(np.median(known)))


def _student_agrees(history: LabelHistory, factor: float | None, limit: float) -> bool:
    if factor is None:
        return False
    usual = float(np.median(history.factors)) if history.has_factors else history.student_offset
    return abs(factor - usual) <= limit
