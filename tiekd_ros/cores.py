"""How many CPU cores this process may use, which is what its numbers of threads follow from."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def cores() -> int:
    """Return the number of physical cores among the CPUs that this process may run on.

    Hardware threads of one core count as one: they share what computes. Where the kernel does
    not say which belong together, each counts.
    """
    try:
        cpus = os.sched_getaffinity(0)  # taskset, cpusets and containers leave fewer than all
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
    return len({_core_of(cpu) for cpu in cpus})


def half_the_cores() -> int:
    """Return half of `cores`, at least 1: what inference and training beside it take each."""
    return max(1, cores() // 2)


def _core_of(cpu: int) -> str:
    """Return the list of all hardware threads of a CPU's core."""
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
