"""The training process: `python -m tiekd_ros.distillation.worker --state DIR --round N`.

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
from pathlib import Path
from typing import Any

from tiekd_ros.distillation.beside import (
    BesideSettings,
    default_threads,
    limit_resources,
    lower_priority,
)
from tiekd_ros.distillation.parent import Parent
from tiekd_ros.errors import TiekdError
from tiekd_ros.state import StateFolder


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
    from tiekd_ros.distillation.plan import RoundPlan
    from tiekd_ros.distillation.round import run_round
    from tiekd_ros.distillation.watch_round import run_watch
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
