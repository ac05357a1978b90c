"""A canary on a state folder with a student that can see, one that cannot, and frames since."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import torch

from helpers.frames import samples, small_plan
from helpers.rounds import OpenState
from helpers.students import small_student
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds.canary_monitor import CanaryMonitor
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.rounds.round_log import CanaryRecord, RoundLog, RoundRecord, RoundState
from tiekd_ros.rounds.trainer import Trainer
from tiekd_ros.student.checkpoint import Student, StudentStatus
from tiekd_ros.student.registry import StudentRegistry

FRAMES = 8
CANARY_PLAN = small_plan(canary={"frames": FRAMES})
KNOWN = 12
"""Of the 24 frames, those that were labelled before the promotion."""

_SCORES = {"rmse": 1.0, "abs_rel": 0.1}
JUDGED_WORSE = {
    "event": "result", "frames": FRAMES, "worse": True, "reason": "much worse",
    "before": _SCORES, "after": _SCORES,
}  # fmt: skip


@lru_cache(maxsize=1)
def _seeing() -> dict[str, torch.Tensor]:
    plan, student = small_plan(), small_student(3)
    trainer = Trainer(
        student.network,
        samples(KNOWN),
        dataclasses.replace(plan.train, iterations=40),
        loss=plan.loss,
        augmentation=plan.augment,
        has_parent=False,
    )
    trainer.run(lambda progress: None)
    return student.network.state_dict()


def seeing_student(**card: object) -> Student:
    """Return a student that learnt the first views; trained once, in a second or two."""
    student = small_student(3, **card)
    student.network.load_state_dict(_seeing())
    student.network.eval()
    return student


def blind_student(**card: object) -> Student:
    """Return one whose weights went bad after the gate saw it: it sees everything too near."""
    student = seeing_student(**card)
    with torch.no_grad():
        student.network.get_submodule("head").bias += torch.linspace(30.0, 0.0, 33)
    return student


def promote_over(
    state: StateFolder, predecessor: Student, promoted: Student, after_id: int = KNOWN
) -> None:
    """Leave a folder as a round leaves it that promoted a student over another."""
    registry = StudentRegistry(state.students)
    before = registry.add(predecessor).version
    registry.promote(before)
    version = registry.add(promoted).version
    registry.promote(version, expected_live=before)
    record = RoundRecord(
        promoted.card.round or 2,
        state=RoundState.PROMOTED,
        stage="done",
        version=version,
        reason="better at the gate",
        canary=CanaryRecord(before, after_id),
    )
    RoundLog(state.rounds).save(record)


def promote_bad(state: StateFolder, after_id: int = KNOWN) -> None:
    """As `promote_over`, of a student that is much worse than its predecessor."""
    bad = blind_student(
        round=2, status=StudentStatus.ACCEPTED, parent="000001", reason="better at the gate"
    )
    promote_over(state, seeing_student(round=1, status=StudentStatus.ACCEPTED), bad, after_id)


def promote_good(state: StateFolder) -> None:
    """As `promote_over`, of a student that is much better than its predecessor."""
    good = seeing_student(round=2, status=StudentStatus.ACCEPTED, parent="000001")
    promote_over(state, blind_student(round=1, status=StudentStatus.ACCEPTED), good)


class OpenCanary(OpenState):
    """A canary on an open state."""

    def __init__(self, state: StateFolder, plan: RoundPlan = CANARY_PLAN) -> None:
        super().__init__(state)
        self.canary = CanaryMonitor(state, self.store, plan, self.seen.append)

    def look(self) -> None:
        """Check once, and wait for what that began."""
        self.canary.check()
        self.canary.wait()

    def pause_in_judging(self) -> bool:
        """Have the worker pause; say whether it does."""
        self.canary.pause()
        assert self.canary.busy, self.canary.trouble or self.seen
        return any(record.paused for record in self.seen)

    def result(self, number: int = 2) -> CanaryRecord:
        """Return what is written down of a canary."""
        record = self.log.record(number)
        assert record is not None
        assert record.canary is not None
        return record.canary

    def told(self) -> list[str]:
        """Return the states that it announced."""
        return [record.canary.state for record in self.seen if record.canary is not None]

    def close(self) -> None:
        self.canary.stop()
        self.store.close()
