"""A wall clock that somebody keeps setting."""

from __future__ import annotations

import itertools
import sys
import time

import pytest

DAY_S = 86_400.0


def let_the_clock_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each look at the wall clock in this process find it a day before or behind.

    Except gRPC's: it hands deadlines by the wall clock to its core, which looks at the machine's
    own, so that the two have to agree.
    """
    real, real_ns = time.time, time.time_ns
    days = itertools.cycle((1, -1))

    def is_for_grpc() -> bool:
        caller = sys._getframe(2).f_globals.get("__name__", "")
        return str(caller).partition(".")[0] == "grpc"

    def jumping() -> float:
        return real() if is_for_grpc() else real() + next(days) * DAY_S

    def jumping_ns() -> int:
        return real_ns() if is_for_grpc() else real_ns() + next(days) * int(DAY_S) * 10**9

    monkeypatch.setattr(time, "time", jumping)
    monkeypatch.setattr(time, "time_ns", jumping_ns)
