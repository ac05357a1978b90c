"""Which frames of the stream count for a student, and their comparison with the truth."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from tiekd_ros.demo.scene import Scene
from tiekd_ros.demo.score import Scoreboard, View
from tiekd_ros.student import StudentRegistry

if TYPE_CHECKING:
    from tiekd_ros.nodes.observer import Pair

SETTLE_S = 1.0
"""Nearer to a swap, a frame may be the other student's: the announcement takes its time."""

LEAST_S = 25.0
"""A short loop is measured several times over, as scoring takes only a few frames a second."""


def measured_seconds(turn_s: float) -> float:
    """Return how long a student is measured: whole turns, so that all students see the same."""
    return turn_s * max(1, math.ceil(LEAST_S / turn_s))


def measured_turn(since_swap_s: float, measured_s: float) -> int | None:
    """Return the turn, from 0, in which a frame counts; None where it is too near to the swap.

    Args:
        since_swap_s: from the student's announcement to the image.
        measured_s: length of a turn.
    """
    if since_swap_s < SETTLE_S:
        return None
    return int((since_swap_s - SETTLE_S) / measured_s)


class Scorer:
    """Compares pairs with the truth, a few a second; called from the observer's thread."""

    def __init__(self, scene: Scene, board: Scoreboard, students: StudentRegistry) -> None:
        self._scene = scene
        self._board = board
        self._students = students
        self._measured_s = measured_seconds(scene.turn_s)
        self._last = 0.0

    def __call__(self, pair: Pair) -> None:
        """Score a pair, unless the last one was only just scored."""
        now = time.monotonic()
        turn = measured_turn(pair.since_swap_s, self._measured_s)
        if turn is None or now - self._last < self._scene.score_every_s:
            return
        self._last = now
        truth = self._scene.truth(pair.image, pair.stamp_ns)
        if truth is not None and pair.version in self._students.versions():
            bins = self._students.card(pair.version).bins
            view = View(pair.stamp_ns, pair.image, pair.depth, truth)
            self._board.add(pair.version, view, bins.min_depth_m, bins.max_depth_m, turn)
