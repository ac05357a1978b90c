"""Waiting for what should happen, never for time to pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import pytest

PATIENCE_S = 100.0
"""Far more than anything here takes on a busy machine; only a failure waits this long."""

_POLL_S = 0.02
_NUDGE_S = 0.5

T = TypeVar("T")


def wait_for(
    condition: Callable[[], T | None],
    what: str,
    *,
    nudge: Callable[[], object] | None = None,
    explain: Callable[[], object] = lambda: "",
) -> T:
    """Wait until the condition gives something true, and return it.

    Args:
        condition: asked again and again.
        what: is waited for; for the failure's text.
        nudge: done at once and then every half second, such as sending an image again.
        explain: says at a failure how things stand.
    """
    start = time.monotonic()
    nudged = -_NUDGE_S
    while True:
        now = time.monotonic() - start
        if nudge is not None and now - nudged >= _NUDGE_S:
            nudged = now
            nudge()
        found = condition()
        if found:
            return found
        assert now < PATIENCE_S, f"waited {now:.0f} s in vain for {what} {explain()}"
        time.sleep(_POLL_S)


def await_log(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Wait until nodes in this process have logged a text."""
    logged: list[str] = []
    wait_for(
        lambda: logged.append(capfd.readouterr().err) or text in "".join(logged),
        f"{text!r} in the log",
    )
