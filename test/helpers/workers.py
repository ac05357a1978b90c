"""Training workers over real pipes, without a runner between."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from helpers.children import PATIENCE_S, start_python
from tiekd_ros.core.state import StateFolder

ENDLESS = {"iterations": 10**6, "threads": 1, "device": "cpu"}


def start_worker(
    state: StateFolder, plan: dict[str, Any] | str, *options: str
) -> subprocess.Popen[str]:
    """Start the worker of round 3."""
    text = plan if isinstance(plan, str) else json.dumps(plan)
    arguments = ["--state", str(state.root), "--round", "3", "--plan", text, *options]
    worker = ["-m", "tiekd_ros.rounds.worker", *arguments]
    return start_python(*worker, stdin=subprocess.PIPE)


def events_of(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """Return all that is left of a worker's events, at its end."""
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert errors == ""
    return [json.loads(line) for line in output.splitlines()]


def wait_for_event(process: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """Return a worker's next event of a kind."""
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == kind:
            return event
    raise AssertionError(f"the worker ended: {process.stderr.read()}")


def tell_worker(process: subprocess.Popen[str], text: str) -> None:
    """Write to a worker's standard input."""
    process.stdin.write(text)
    process.stdin.flush()
