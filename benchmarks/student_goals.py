"""The promises of student.py, judged at 480x640."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from measuring import Goal
from student_cases import DEPTH_ANYTHING, EAGER, ONNXRUNTIME, OURS, PUBLISHED, TORCH

if TYPE_CHECKING:
    from student import Row

_FASTER = {PUBLISHED: 60.0, DEPTH_ANYTHING: 15.0}
_ONNXRUNTIME_FASTER = 2.0
_MOST_MS, _ON_THREADS = 30.0, 2

Key = tuple[str, str]  # network, runtime


def judge(rows: Sequence[Row], threads: int) -> list[Goal]:
    """Return the goals; not measured where a row that one needs is missing.

    Args:
        rows: of the table at 480x640.
        threads: that they were measured with.
    """
    by_key = {(row.network, row.runtime): row for row in rows}
    ms = {key: row.ms.median for key, row in by_key.items()}
    goals = [
        _ratio(f"{OURS} faster than {network}, {runtime}", ms, (network, runtime), runtime, factor)
        for network, factor in _FASTER.items()
        for runtime in (TORCH, ONNXRUNTIME)
    ]
    note = ""
    if (OURS, ONNXRUNTIME) in by_key:
        eager, fast = by_key[OURS, EAGER], by_key[OURS, ONNXRUNTIME]
        share = by_key[OURS, TORCH].of_peak
        note = (
            f"faster than eager torch: {eager.ms.median / fast.ms.median:.1f} x; our torch runtime "
            f"reaches {share:.0%} of the machine's peak, onnxruntime {fast.of_peak:.0%}"
        )
    name = f"{OURS}: onnxruntime faster than torch"
    goals.append(_ratio(name, ms, (OURS, TORCH), ONNXRUNTIME, _ONNXRUNTIME_FASTER, note))
    return [*goals, _milliseconds(by_key, threads)]


def _ratio(
    name: str, ms: Mapping[Key, float], slow: Key, runtime: str, factor: float, note: str = ""
) -> Goal:
    """Return the goal that ours in a runtime is at least `factor` times faster than `slow`."""
    wanted = f">= {factor:g} x"
    fast = (OURS, runtime)
    if slow not in ms or fast not in ms:
        return Goal(name, wanted, "-", None)
    ratio = ms[slow] / ms[fast]
    return Goal(name, wanted, f"{ratio:.1f} x", ratio >= factor, note)


def _milliseconds(by_key: Mapping[Key, Row], threads: int) -> Goal:
    name = f"{OURS}: image to depth, 480x640, threads: {_ON_THREADS}"
    wanted = f"<= {_MOST_MS:g} ms"
    ours = [row for (network, _), row in by_key.items() if network == OURS]
    if not ours or threads != _ON_THREADS:
        return Goal(name, wanted, "-", None)
    best = min(ours, key=lambda row: row.ms.median)
    alone = "" if best.network_ms is None else f"{best.network_ms:.1f} ms of it the network; "
    note = f"{best.runtime}; {alone}at this machine's peak: {best.ms.median * best.of_peak:.1f} ms"
    found = best.ms.median
    return Goal(name, wanted, f"{found:.1f} ms", found <= _MOST_MS, note)
