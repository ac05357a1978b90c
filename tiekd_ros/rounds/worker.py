"""The worker's end of a round: `python -m tiekd_ros.rounds.worker --state DIR --round N`.

Runs one round of training; with `--calibrate`, one that fits the base student to the first labels;
with `--canary`, judges anew the student that the round promoted. Writes one JSON object a line to
standard output, each a `WorkerEvent`. It gives way to others, but for `--calibrate`, and can be
killed at any moment: what it stores appears whole or not at all. With `--with-parent` it ends when
its standard input closes, that is, when the process that started it dies, and obeys the
`WorkerCommand`s that it reads there. `worker_process` is the parent's end.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.settings import TextEnum
from tiekd_ros.core.state import StateFolder
from tiekd_ros.rounds import Emit, WorkerEvent
from tiekd_ros.rounds.limits import (
    ResourceSettings,
    default_threads,
    limit_resources,
    lower_priority,
)


class WorkerCommand(TextEnum):
    """What a worker obeys, one a line on its standard input."""

    PAUSE = "pause"
    RESUME = "resume"


class StdinControl:
    """Obeys the parent process: training pauses from `pause` to `resume`; at its death, it ends.

    A thread of its own reads standard input; the training thread only waits for its flag.

    Args:
        emit: gets a `paused` event when a pause begins, and one when it is over.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._may_train = threading.Event()
        self._may_train.set()

    def start(self) -> None:
        """Read in a thread of its own, until standard input closes; then end this process."""
        threading.Thread(target=self._read, name="stdin", daemon=True).start()

    def wait_while_paused(self) -> float:
        """Block while training is paused, and return the seconds that this took."""
        if self._may_train.is_set():
            return 0.0
        self._emit({"event": WorkerEvent.PAUSED, "paused": True, "seconds": 0.0})
        start = time.monotonic()
        self._may_train.wait()
        seconds = time.monotonic() - start
        self._emit({"event": WorkerEvent.PAUSED, "paused": False, "seconds": seconds})
        return seconds

    def _read(self) -> None:
        begun = b""
        while read := os.read(0, 4096):  # not sys.stdin: its lock would trouble Python's own end
            *lines, begun = (begun + read).split(b"\n")
            for line in lines:
                if line == WorkerCommand.PAUSE.encode():
                    self._may_train.clear()
                elif line == WorkerCommand.RESUME.encode():
                    self._may_train.set()
        os._exit(3)


def main(arguments: list[str] | None = None) -> int:
    """Run one round, or judge anew; return 0 after a verdict, 2 where it came to none."""
    parser = argparse.ArgumentParser(prog="tiekd distillation worker", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state folder")
    parser.add_argument("--round", type=int, required=True, help="number of the round")
    parser.add_argument(
        "--canary", action="store_true", help="judge the round's student on frames since"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help="calibrate the base student, train none"
    )
    parser.add_argument("--plan", default="{}", help="settings as JSON: {group: {name: value}}")
    parser.add_argument(
        "--with-parent", action="store_true", help="obey stdin: end with it, pause, resume"
    )
    options = parser.parse_args(arguments)
    control = StdinControl(_emit)
    if options.with_parent:
        control.start()
    try:
        _run(options, control)
    except (TiekdError, json.JSONDecodeError) as error:
        _emit({"event": WorkerEvent.ERROR, "message": str(error)})
        return 2
    return 0


def _run(options: argparse.Namespace, control: StdinControl) -> None:
    groups = json.loads(options.plan)
    if not options.calibrate:  # which is short, and for which there is no depth to be disturbed
        lower_priority(ResourceSettings.from_mapping(groups.get("resources", {})).scheduling)
    # torch comes with these, and takes seconds of a core: after this process gave way
    import torch

    from tiekd_ros.rounds.calibration import run_calibration
    from tiekd_ros.rounds.canary import evaluate_canary
    from tiekd_ros.rounds.plan import RoundPlan
    from tiekd_ros.rounds.round import run_round
    from tiekd_ros.student.registry import StudentRegistry

    plan = RoundPlan.from_mapping(groups)
    state = StateFolder(options.state)
    inference = StudentRegistry(state.students).live() is not None
    threads = plan.train.threads or default_threads(inference=inference)
    limit_resources(plan.resources, threads, plan.train.device)
    pause = control.wait_while_paused
    if options.canary:
        evaluate_canary(state, plan.canary, options.round, _emit, pause)
        return
    if options.calibrate:
        run_calibration(state, plan, options.round, _emit, pause)
        return
    torch.manual_seed(plan.train.seed + options.round)  # of a first student's random weights
    run_round(state, plan, options.round, _emit, pause)


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
