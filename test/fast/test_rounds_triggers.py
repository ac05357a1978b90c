"""The triggers of rounds: when a period is over, and what begins it anew."""

from __future__ import annotations

from tiekd_ros.rounds.plan import RoundSettings
from tiekd_ros.rounds.triggers import TriggerFacts, automatic_triggers, due_reason


def test_a_period_starts_a_round_once_with_enough_new_labels():
    triggers = automatic_triggers(0.0)
    settings = RoundSettings(period_s=10.0, min_new_labels=5)

    def due(now_s: float, labels: int) -> str | None:
        return due_reason(triggers, TriggerFacts(now_s, settings, lambda: labels))

    assert due(9.9, 5) is None
    assert due(10.0, 4) is None  # over without enough of them: it begins anew
    assert due(19.9, 5) is None
    assert due(20.0, 5) == "period: 5 new labels"
    assert due(21.0, 5) is None
    triggers[0].on_start(25.0)  # by a call, for instance
    assert due(34.9, 9) is None
    assert due(35.0, 9) == "period: 9 new labels"


def test_without_a_period_no_round_starts_by_itself():
    facts = TriggerFacts(1e9, RoundSettings(period_s=0.0), lambda: 10**6)
    assert due_reason(automatic_triggers(0.0), facts) is None
