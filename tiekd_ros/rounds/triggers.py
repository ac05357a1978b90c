"""The reasons for which a round starts: one class and one row of `automatic_triggers` each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from tiekd_ros.rounds.plan import RoundSettings

CALLED = "called"
"""The reason of a round that a person or a program asked for by service or command."""


@dataclass(frozen=True)
class TriggerFacts:
    """What triggers decide by.

    Attributes:
        now_s: monotonic time.
        settings: those of the next round.
        new_labels: returns how many frames got a label since the last round; reads the frame log.
    """

    now_s: float
    settings: RoundSettings
    new_labels: Callable[[], int]


class RoundTrigger(Protocol):
    """Decides when a round starts by itself; subclass it.

    It is asked about once a second, also while a round runs and after one was refused; a reason
    that cannot start a round is dropped, and may be given again.
    """

    def due(self, facts: TriggerFacts) -> str | None:
        """Return why a round has to start now, None where it has not.

        Raises:
            TiekdError: the frame log cannot be read.
        """

    def on_start(self, now_s: float) -> None:
        """Note that a round started, for whatever reason; nothing to do where none is noted."""


class PeriodTrigger(RoundTrigger):
    """Starts a round each `distill.period_s` where there are enough new labels.

    A period that ends without them begins anew.
    """

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s

    def due(self, facts: TriggerFacts) -> str | None:
        """Return `period` and its numbers where one is over."""
        period_s = facts.settings.period_s or math.inf
        if facts.now_s - self._began_s < period_s:
            return None
        self._began_s = facts.now_s
        new = facts.new_labels()
        return f"period: {new} new labels" if new >= facts.settings.min_new_labels else None

    def on_start(self, now_s: float) -> None:
        """Begin a period."""
        self._began_s = now_s


def automatic_triggers(now_s: float) -> tuple[RoundTrigger, ...]:
    """Return the triggers that the companion asks, for a companion that starts at `now_s`."""
    return (PeriodTrigger(now_s),)


def due_reason(triggers: Iterable[RoundTrigger], facts: TriggerFacts) -> str | None:
    """Return the first reason that a trigger has to start a round, None where there is none."""
    return next((reason for each in triggers if (reason := each.due(facts))), None)
