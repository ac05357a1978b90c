"""Run the speed benchmarks one after the other, and end with one table of all goals.

    python benchmarks/run_all.py --quick       within 15 minutes on 2 cores
    python benchmarks/run_all.py               about half an hour, what docs/performance.md shows
    python benchmarks/run_all.py --only loss   one of them

Each is a process of its own. One that breaks or does not end is reported, and the next one runs.
Where a CUDA device is, gpu.py runs too. Run it on a machine that does nothing else.

Exits with 0 when every script ran to its end; a goal that is missed is a result, not an error.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import Goal, arguments, console, finish

from tiekd_ros.core.supervisor import ended_by_signals

SCRIPTS = ("student", "loss", "node", "distill")
ON_A_GPU = "gpu"
_LIMIT_S = 1800.0  # of one script: far more than any takes
_GRACE_S = 10.0


class Outcome(NamedTuple):
    """How a script ended; `problem` is empty where it ran to its end."""

    name: str
    seconds: float
    problem: str
    goals: list[Goal]


def main(argv: list[str] | None = None) -> int:
    """Run all, print the table, write it."""
    options = read_options(argv)
    screen = console()
    quick = ["--quick"] if options.quick else []
    outcomes = []
    for number, name in enumerate(options.only, 1):
        screen.rule(f"{number} of {len(options.only)}: {name}")
        outcome = run(options.scripts / f"{name}.py", options.output, *quick)
        outcomes.append(outcome)
        ended = f"BROKE, going on: {outcome.problem}" if outcome.problem else "ended"
        screen.print(f"{name} {ended} after {outcome.seconds:.0f} s")
    screen.rule("all")
    tables = {o.name: {"seconds": o.seconds, "problem": o.problem or None} for o in outcomes}
    finish("run_all", options, tables, [goal for o in outcomes for goal in named(o)])
    broken = [outcome.name for outcome in outcomes if outcome.problem]
    total = sum(outcome.seconds for outcome in outcomes)
    screen.print(f"{total / 60:.1f} minutes" + (f", BROKE: {', '.join(broken)}" if broken else ""))
    return 1 if broken else 0


def read_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*SCRIPTS, ON_A_GPU),
        default=[*SCRIPTS, *([ON_A_GPU] if torch.cuda.is_available() else [])],
        help="which, in this order [all; gpu where CUDA is]",
    )
    parser.add_argument(
        "--scripts",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="folder of the scripts [the one of this script]",
    )
    return parser.parse_args(argv)


def run(script: Path, output: Path, *more: str) -> Outcome:
    """Run a script to its end, with more arguments, and read the results that it wrote."""
    name = script.stem
    results = output / f"{name}.json"
    results.unlink(missing_ok=True)  # of an earlier run
    start = time.monotonic()
    problem = wait_for([sys.executable, script, "--output", output, *more])
    seconds = time.monotonic() - start
    if problem:
        return Outcome(name, seconds, problem, [])
    try:
        goals = [Goal(**goal) for goal in json.loads(results.read_text())["goals"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Outcome(name, seconds, f"no results: {type(error).__name__}: {error}", [])
    return Outcome(name, seconds, "", goals)


def wait_for(command: Sequence[str | Path]) -> str:
    """Run a command with all its children; return what went wrong, empty where nothing did."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = child.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"still running after {_LIMIT_S:.0f} s, stopped"
    else:
        return f"exit code {code}, see above" if code else ""
    finally:  # also after Ctrl-C, which a session of its own does not get
        stop(child)


def stop(child: subprocess.Popen[bytes]) -> None:
    """End a child, if it has not ended, and what it started; all get time to end by themselves."""
    with contextlib.suppress(ProcessLookupError):  # once none of them is left
        os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_S
        while time.monotonic() < deadline:
            child.poll()  # reaps it
            os.killpg(child.pid, 0)
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def named(outcome: Outcome) -> list[Goal]:
    """Return a script's goals with its name, or a line that says that there are none."""
    if outcome.problem:
        return [Goal(f"{outcome.name}: all", "-", "-", None, outcome.problem)]
    return [goal._replace(name=f"{outcome.name}: {goal.name}") for goal in outcome.goals]


if __name__ == "__main__":
    with ended_by_signals():  # SIGTERM and a closed terminal leave no script behind either
        sys.exit(main())
