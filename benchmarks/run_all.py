"""Run the speed benchmarks one after the other, and end with one table of all goals.

    python benchmarks/run_all.py --quick         within 15 minutes on 2 cores
    python benchmarks/run_all.py                 about half an hour, what docs/performance.md shows
    python benchmarks/run_all.py --only loss     one of them
    python benchmarks/run_all.py --device cuda   students, loss and node on a GPU alone

Each is a process of its own. One that breaks or does not end is reported, and the next one runs.
Where a CUDA device is, it is measured too, node.py with --quick. Run it on a machine that does
nothing else.

Exits with 1 where a goal was missed, with 2 where a script broke.
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
from harness import BROKE, MISSED, RESULTS, Goal, Report, console, parser, run

from tiekd_ros.core.supervisor import ended_by_signals

SCRIPTS = {"cpu": ("student", "loss", "node", "distill"), "cuda": ("student", "loss", "node")}
_LIMIT_S = 1800.0  # of one script: far more than any takes
_GRACE_S = 10.0


class Outcome(NamedTuple):
    """The end of one script; `problem` is empty where it ran to its end."""

    name: str
    seconds: float
    problem: str
    goals: list[Goal]


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    report = Report("run_all", options)
    screen = console()
    outcomes = []
    for device, name in [(d, n) for d in options.device for n in options.only if n in SCRIPTS[d]]:
        title = name if device == "cpu" else f"{name}, {device}"
        screen.rule(title)
        if device == "cuda" and not torch.cuda.is_available():
            note = f"torch {torch.__version__} sees no CUDA device"
            screen.print(f"{note}: nothing to measure")
            report.goals.append(Goal(f"{title}: all", "-", "-", None, note))
            continue
        # On a GPU into a folder of its own, beside the results of the same script on the CPU.
        file = options.output / ("" if device == "cpu" else "gpu") / f"{name}.json"
        more = [] if device == "cpu" else ["--device", device]
        if options.quick or (device, name) == ("cuda", "node"):
            more.append("--quick")
        outcome = run_script(title, options.scripts / f"{name}.py", file, *more)
        outcomes.append(outcome)
        ended = f"BROKE, going on: {outcome.problem}" if outcome.problem else "ended"
        screen.print(f"{title} {ended} after {outcome.seconds:.0f} s")
    screen.rule("all")
    report.tables |= {o.name: {"seconds": o.seconds, "problem": o.problem} for o in outcomes}
    report.goals += [goal for outcome in outcomes for goal in outcome.goals]
    code = report.finish()
    broken = [outcome.name for outcome in outcomes if outcome.problem]
    total = sum(outcome.seconds for outcome in outcomes)
    screen.print(f"{total / 60:.1f} minutes" + (f", BROKE: {', '.join(broken)}" if broken else ""))
    return BROKE if broken else code


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    names = SCRIPTS["cpu"]
    made.add_argument("--only", nargs="+", choices=names, default=names, help="in order [all]")
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    made.add_argument("--device", nargs="+", choices=SCRIPTS, default=devices, help="[all here]")
    made.add_argument("--scripts", type=Path, default=Path(__file__).parent, metavar="DIR")
    made.add_argument(
        "--output", type=Path, default=RESULTS, metavar="DIR", help=f"for their results [{RESULTS}]"
    )
    options = made.parse_args(argv)
    options.json = options.json or options.output / "run_all.json"
    return options


def run_script(name: str, script: Path, results: Path, *more: str) -> Outcome:
    """Run a script to its end, with more arguments, and read the results that it wrote."""
    results.unlink(missing_ok=True)  # of an earlier run
    start = time.monotonic()
    problem = wait_for([sys.executable, script, "--json", results, *more])
    seconds = time.monotonic() - start
    goals = []
    try:
        goals = [] if problem else json.loads(results.read_text())["goals"]
        goals = [Goal(**{**goal, "name": f"{name}: {goal['name']}"}) for goal in goals]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"no results: {type(error).__name__}: {error}"
    if problem:
        goals = [Goal(f"{name}: all", "-", "-", None, problem)]
    return Outcome(name, seconds, problem, goals)


def wait_for(command: Sequence[str | Path]) -> str:
    """Run a command with all its children; return what went wrong, empty where nothing did."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        code = child.wait(_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"still running after {_LIMIT_S:.0f} s, stopped"
    else:
        return "" if code in (0, MISSED) else f"exit code {code}, see above"
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


if __name__ == "__main__":
    with ended_by_signals():  # SIGTERM and a closed terminal leave no script behind either
        run(main)
