"""The reasons for which a round starts: one class and one row of `automatic_triggers` each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tiekd_ros.framelog import LabelledSpan
from tiekd_ros.method.first_student import BASE_START
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import RoundKind, RoundRecord

CALLED = "called"
"""The reason of a round that a person or a program asked for by service or command."""


_MOST_DOUBLINGS = 3
_LEAST_SPAN_S = 4.0
"""Labels that cover less show one view, by whose neighbours nothing can be judged."""


@dataclass(frozen=True)
class TriggerFacts:
    """What triggers decide by; what has to be read from the disk is a function.

    Attributes:
        now_s: monotonic time.
        plan: that of the next round.
        has_student: whether one is live.
        new_labels: returns how many frames got a label since the last round; reads the frame log.
        labelled: returns how many have a label; reads the frame log.
        last_calibration: returns the last calibration that was not interrupted, if any; reads the
            round log.
        drift: returns what has drifted, None where nothing has.
        refused: returns how many of the last rounds were refused, in a row, up to the number that
            it is given; reads the round log.
        charging: whether the robot charges, as far as is known.
    """

    now_s: float
    plan: RoundPlan
    has_student: bool
    new_labels: Callable[[], int]
    labelled: Callable[[], LabelledSpan]
    last_calibration: Callable[[], RoundRecord | None]
    drift: Callable[[], str | None]
    refused: Callable[[int], int]
    charging: bool

    @property
    def labels_needed(self) -> int:
        """New labels that a round by period waits for: twice as many with each refusal before."""
        doublings = self.refused(_MOST_DOUBLINGS)
        return int(self.plan.distill.min_new_labels * 2**doublings)


class RoundTrigger(Protocol):
    """Decides when a round starts by itself; subclass it.

    It is asked about once a second, also while a round runs and after one was refused; a reason
    that cannot start a round is dropped, and may be given again.
    """

    kind: RoundKind = RoundKind.TRAINING
    """The round that it starts."""

    def due(self, facts: TriggerFacts) -> str | None:
        """Return why a round has to start now, None where it has not.

        Raises:
            TiekdError: the frame log cannot be read.
        """

    def on_start(self, now_s: float) -> None:
        """Note that a round started, for whatever reason; nothing to do where none is noted."""


class PeriodTrigger(RoundTrigger):
    """Starts a round each `distill.period_s` where there are enough new labels.

    A period that ends without them begins anew. After rounds that were refused it takes more labels
    (`labels_needed`): on what is nearly the same log, another round would learn nothing.
    """

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s

    def due(self, facts: TriggerFacts) -> str | None:
        """Return `period` and its numbers where one is over."""
        settings = facts.plan.distill
        period_s = settings.period_s or math.inf
        if facts.now_s - self._began_s < period_s:
            return None
        self._began_s = facts.now_s
        new = facts.new_labels()
        return f"period: {new} new labels" if new >= facts.labels_needed else None

    def on_start(self, now_s: float) -> None:
        """Begin a period."""
        self._began_s = now_s


class DriftTrigger(RoundTrigger):
    """Starts a round where the live student has drifted and there are enough new labels."""

    def due(self, facts: TriggerFacts) -> str | None:
        """Return `drift` and its numbers where there is one."""
        settings = facts.plan.distill
        if not settings.drift or (found := facts.drift()) is None:
            return None
        new = facts.new_labels()
        return f"drift: {found}; {new} new labels" if new >= settings.min_new_labels else None

    def on_start(self, now_s: float) -> None:
        """Note nothing: the companion restarts the detector."""


class FirstLabelsTrigger(RoundTrigger):
    """Has the base student calibrated to the first `distill.first_labels` while none is live.

    After a refusal, or a failure, again when there are twice as many labels.
    """

    kind = RoundKind.CALIBRATION

    def due(self, facts: TriggerFacts) -> str | None:
        """Return `first labels` and their number where there are enough."""
        least = facts.plan.distill.first_labels
        if facts.has_student or not least or facts.plan.student.weights != BASE_START:
            return None
        labelled = facts.labelled()
        if labelled.frames < least or labelled.seconds < _LEAST_SPAN_S:
            return None
        before = facts.last_calibration()
        if before is not None and labelled.frames < 2 * before.labels:
            return None
        return f"first labels: {labelled.frames}"

    def on_start(self, now_s: float) -> None:
        """Note nothing: the round log knows."""


_HOUR_S = 3600.0


class Unattended(RoundTrigger):
    """Holds a trigger back after `distill.max_per_hour` rounds in an hour, or without a charger."""

    def __init__(self, trigger: RoundTrigger) -> None:
        self.kind = trigger.kind
        self._trigger = trigger
        self._started_s: list[float] = []

    def obstacle(self, facts: TriggerFacts) -> str:
        """Return what holds it back; empty where nothing does."""
        settings = facts.plan.distill
        if settings.only_while_charging and not facts.charging:
            return "the robot does not charge, by the topic charging (distill.only_while_charging)"
        lately = sum(facts.now_s - started_s < _HOUR_S for started_s in self._started_s)
        if settings.max_per_hour and lately >= settings.max_per_hour:
            return f"{lately} rounds were run within the hour (distill.max_per_hour)"
        return ""

    def due(self, facts: TriggerFacts) -> str | None:
        """Return the trigger's reason where nothing holds it back."""
        return None if self.obstacle(facts) else self._trigger.due(facts)

    def on_start(self, now_s: float) -> None:
        """Count a round."""
        self._started_s = [s for s in self._started_s if now_s - s < _HOUR_S] + [now_s]
        self._trigger.on_start(now_s)


def automatic_triggers(now_s: float) -> tuple[RoundTrigger, ...]:
    """Return the triggers that the companion asks, for a companion that starts at `now_s`."""
    often = (DriftTrigger(), PeriodTrigger(now_s))
    return (FirstLabelsTrigger(), *map(Unattended, often))


class DueRound(NamedTuple):
    """A round that has to start, and why."""

    kind: RoundKind
    reason: str


def due_round(triggers: Iterable[RoundTrigger], facts: TriggerFacts) -> DueRound | None:
    """Return the round of the first trigger that has a reason, None where none has."""
    found = ((each.kind, each.due(facts)) for each in triggers)
    return next((DueRound(kind, reason) for kind, reason in found if reason), None)


def describe_next(triggers: Iterable[RoundTrigger], facts: TriggerFacts) -> str:
    """Return what the next round that starts by itself waits for.

    Raises:
        TiekdError: the frame log cannot be read.
    """
    settings = facts.plan.distill
    if not settings.period_s and not settings.drift:
        return "none: rounds start when distill is called"
    held = (each.obstacle(facts) for each in triggers if isinstance(each, Unattended))
    if obstacle := next(filter(None, held), ""):
        return f"held back: {obstacle}"
    new, least = facts.new_labels(), settings.min_new_labels
    needed = facts.labels_needed if settings.period_s else least
    waits = []
    if settings.period_s:
        refused = " after refusals" if needed > least else ""
        waits.append(f"by period, {needed} new labels{refused}")
    if settings.drift:
        waits.append(f"by drift, {least}")
    return f"{' or '.join(waits)} (now {new})"
