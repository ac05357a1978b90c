"""The training process: `python -m tiekd_ros.rounds.worker --state DIR --round N`.

With `--watch` it trains nothing, but judges anew the student that the round promoted.

Writes one JSON object a line to standard output: `stage`, `progress`, `resting`, `undecodable`,
`warning`, `result` or `error`. It gives way to others, and can be killed at any moment: what it
stores appears whole or not at all. With `--with-parent` it ends when its standard input closes,
that is, when the process that started it dies, and rests between the lines `pause` and `resume`
there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds.limits import BesideSettings, default_threads, limit_resources, lower_priority

PAUSE, RESUME = "pause", "resume"
"""What the parent may say, one a line."""


class Parent:
    """Listens to the parent: training rests from `pause` to `resume`; at its death, it ends.

    Args:
        emit: gets a `resting` event when a rest begins, and one when it is over.
    """

    def __init__(self, emit: Callable[[dict[str, Any]], None]) -> None:
        self._emit = emit
        self._may_train = threading.Event()
        self._may_train.set()

    def listen(self) -> None:
        """Listen in a thread of its own, until standard input closes; then end this process."""
        threading.Thread(target=self._listen, name="parent", daemon=True).start()

    def rest(self) -> float:
        """Block while training has to rest, and return the seconds that this took."""
        if self._may_train.is_set():
            return 0.0
        self._emit({"event": "resting", "resting": True, "seconds": 0.0})
        start = time.monotonic()
        self._may_train.wait()
        seconds = time.monotonic() - start
        self._emit({"event": "resting", "resting": False, "seconds": seconds})
        return seconds

    def _listen(self) -> None:
        begun = b""
        while said := os.read(0, 4096):  # not sys.stdin: its lock would trouble Python's own end
            *lines, begun = (begun + said).split(b"\n")
            for line in lines:
                if line == PAUSE.encode():
                    self._may_train.clear()
                elif line == RESUME.encode():
                    self._may_train.set()
        os._exit(3)


def main(arguments: list[str] | None = None) -> int:
    """Run one round, or judge anew; return 0 after a verdict, 2 where it came to none."""
    parser = argparse.ArgumentParser(prog="tiekd distillation worker", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state folder")
    parser.add_argument("--round", type=int, required=True, help="number of the round")
    parser.add_argument(
        "--watch", action="store_true", help="judge the round's student on frames since"
    )
    parser.add_argument("--plan", default="{}", help="settings as JSON: {group: {name: value}}")
    parser.add_argument(
        "--with-parent", action="store_true", help="listen to stdin: end with it, pause, resume"
    )
    options = parser.parse_args(arguments)
    parent = Parent(_emit)
    if options.with_parent:
        parent.listen()
    try:
        _run(options, parent)
    except (TiekdError, json.JSONDecodeError) as error:
        _emit({"event": "error", "message": str(error)})
        return 2
    return 0


def _run(options: argparse.Namespace, parent: Parent) -> None:
    groups = json.loads(options.plan)
    lower_priority(BesideSettings.from_mapping(groups.get("beside", {})).scheduling)
    # torch comes with these, and takes seconds of a core: after this process gave way
    from tiekd_ros.rounds.plan import RoundPlan
    from tiekd_ros.rounds.round import run_round, run_watch
    from tiekd_ros.student import StudentRegistry

    plan = RoundPlan.from_mapping(groups)
    state = StateFolder(options.state)
    inference = StudentRegistry(state.students).live() is not None
    threads = plan.train.threads or default_threads(inference=inference)
    limit_resources(plan.beside, threads, plan.train.device)
    run = run_watch if options.watch else run_round
    run(state, plan, options.round, _emit, parent.rest)


def _emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Taking torch down in order takes half a second, for which promotion would wait; all that
    # was stored lies safe on the disk.
    os._exit(status)
