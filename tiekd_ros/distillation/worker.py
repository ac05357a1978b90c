"""The training process: `python -m tiekd_ros.distillation.worker --state DIR --round N`.

Writes one JSON object a line to standard output: `stage`, `progress`, `undecodable`, `warning`,
`result` or `error`. It runs at low priority, and can be killed at any moment: what it stores
appears whole or not at all. With `--with-parent` it ends when its standard input closes, that
is, when the process that started it dies.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from tiekd_ros.distillation.plan import RoundPlan
from tiekd_ros.errors import TiekdError
from tiekd_ros.state import StateFolder

NICENESS = 10
"""A busy process of normal niceness gets about nine times the worker's share of a core."""


def main(arguments: list[str] | None = None) -> int:
    """Run one round; return 0 when it came to a verdict, 2 when it could not."""
    parser = argparse.ArgumentParser(prog="tiekd distillation worker", description=__doc__)
    parser.add_argument("--state", type=Path, required=True, help="state folder")
    parser.add_argument("--round", type=int, required=True, help="number of the round")
    parser.add_argument("--plan", default="{}", help="settings as JSON: {group: {name: value}}")
    parser.add_argument("--with-parent", action="store_true", help="end when stdin closes")
    options = parser.parse_args(arguments)
    if options.with_parent:
        threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        plan = RoundPlan.from_mapping(json.loads(options.plan))
        _yield_to_others(plan.train.threads)
        from tiekd_ros.distillation.round import run_round  # imports torch's users: after nice

        run_round(StateFolder(options.state), plan, options.round, _emit)
    except (TiekdError, json.JSONDecodeError) as error:
        _emit({"event": "error", "message": str(error)})
        return 2
    return 0


def _emit(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def _end_with_parent() -> None:
    while os.read(0, 4096):  # not sys.stdin: its lock would trouble the interpreter's own end
        pass
    os._exit(3)


def _yield_to_others(threads: int) -> None:
    """Give way to inference: lowest useful niceness, batch scheduling, half of the cores."""
    import torch

    with contextlib.suppress(OSError):
        os.nice(NICENESS - os.nice(0))
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 2) // 2))


if __name__ == "__main__":
    sys.exit(main())
