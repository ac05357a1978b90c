"""The training worker as its parent sees it: started, listened to, told to rest, found dead."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.state import StateFolder


def worker_log(state: StateFolder) -> Path:
    """Return where workers write what they have to say beside their events."""
    return state.logs / "worker.log"


_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""glibc gives large blocks back at once, and the kernel clears them again for the next step: an
eighth of a training step. So it is told to keep them; other C libraries do not mind."""


def spawn_worker(state: StateFolder, plan: RoundPlan, number: int) -> subprocess.Popen[str]:
    """Start the worker of a round; it ends when its standard input closes.

    Raises:
        OSError: it, or its log, cannot be opened.
    """
    command = [sys.executable, "-m", "tiekd_ros.distillation.worker", "--with-parent"]
    command += ["--state", str(state.root), "--round", str(number)]
    command += ["--plan", json.dumps(plan.as_dict())]
    with worker_log(state).open("a") as errors:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            env={**_KEEP_MEMORY, **os.environ},  # the user's own settings win
            # Ctrl-C is meant for the parent, which ends its worker; and a session of its own
            # can be niced as a whole (see lower_priority)
            start_new_session=True,
        )


def tell(process: subprocess.Popen[str], word: str) -> None:
    """Say `PAUSE` or `RESUME` to a worker; one that is dead does not hear it, and that is fine."""
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError):  # a broken pipe, a closed one
        process.stdin.write(word + "\n")
        process.stdin.flush()


def read_events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the events among a worker's lines; a kill cuts one short, a library may print one."""
    for line in lines:
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(event, dict) and "event" in event:
            yield event


def cause_of_death(code: int, log: Path) -> str:
    """Say how a worker ended that came to no verdict."""
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"the training worker {how}; nothing is lost, call again (its log: {log})"
