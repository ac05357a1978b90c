"""The training worker as its parent sees it: started, listened to, found dead."""

from __future__ import annotations

import json
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
            start_new_session=True,  # Ctrl-C is meant for the parent, which ends its worker
        )


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
