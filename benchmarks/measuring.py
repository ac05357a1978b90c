"""What every benchmark script shares: its options, timing, tables, goals and the results file."""

from __future__ import annotations

import argparse
import importlib.metadata
import inspect
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

RESULTS = Path("benchmarks") / "results"
_WIDTH = 160  # characters
_LAYERS = ("onnxruntime", "onnxruntime-gpu", "transformers", "tiekd_ros")


class Spread(NamedTuple):
    """Repeated measurements in short: median, 10th and 90th percentile, how many."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}-{number(self.high)})"


class Goal(NamedTuple):
    """One promise and what came of it.

    `met` is None where there is no limit to judge by, or nothing was measured: `measured` is "-".
    """

    name: str
    wanted: str
    measured: str
    met: bool | None
    note: str = ""


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark.

    Args:
        description: a script's docstring; the first line sums it up, all of it ends the help.
    """
    parser = argparse.ArgumentParser(
        description=description.partition("\n")[0],
        epilog=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="fewer repeats and cases")
    parser.add_argument(
        "--output",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help=f"folder for the results as JSON [{RESULTS}]",
    )
    return parser


def machine() -> dict[str, object]:
    """Return what the numbers depend on: processor, cores, GPU, versions, date."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in _LAYERS if (version := _version(name)) is not None},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least one value."""
    low, median, high = (float(q) for q in np.percentile(values, (10, 50, 90)))
    return Spread(median, low, high, len(values))


def interleaved(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    warm_up: int = 3,
    rest_s: float = 0.0,
) -> dict[str, list[float]]:
    """Time every candidate `repeats` times, in turn, so that the machine's noise hits all alike.

    Args:
        candidates: what to call, by name. On a GPU the call must wait for its result.
        repeats: timed rounds.
        warm_up: rounds before, not timed.
        rest_s: pause before each call: threads that one candidate leaves waiting busily for
            more work (OpenMP's do so for milliseconds) are not to slow down the next.

    Returns:
        Milliseconds of every call, by name.
    """
    times: dict[str, list[float]] = {name: [] for name in candidates}
    with progress() as bar:
        task = bar.add_task("warming up", total=(warm_up + repeats) * len(candidates))
        for turn in range(warm_up + repeats):
            for name, call in candidates.items():
                bar.update(task, description=name)
                time.sleep(rest_s)
                start = time.perf_counter()
                call()
                if turn >= warm_up:
                    times[name].append(1e3 * (time.perf_counter() - start))
                bar.advance(task)
    return times


class Neighbours:
    """How many cores other programs kept busy since this was made; Linux only."""

    def __init__(self) -> None:
        self._start = self._now()

    def cores(self) -> float:
        """Return the mean number of busy cores, without this process's own work."""
        wall, busy, own = (now - then for now, then in zip(self._now(), self._start, strict=True))
        return max(0.0, busy - own) / wall

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = [int(v) for v in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _wait, irq, softirq, steal = ticks[:8]
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), busy, sum(os.times()[:4])


def progress() -> Progress:
    """Return a progress bar on the error stream: the tables are what a pipe gets."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    errors = Console(stderr=True)
    return Progress(
        *columns,
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
        refresh_per_second=1,  # drawing takes time from what is measured
    )


def console() -> Console:
    """Return the output for tables: what is no terminal gets them wide, whole for a report."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(width=width)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(number(cell) if isinstance(cell, float) else str(cell) for cell in row))
    console().print(table)


def print_goals(goals: Sequence[Goal]) -> None:
    """Print what was promised, what was measured, and whether it was kept."""
    table = Table(title="Goals", title_justify="left")
    for column in ("goal", "wanted", "measured", "", "note"):
        table.add_column(column, overflow="fold")
    for goal in goals:
        table.add_row(goal.name, goal.wanted, goal.measured, _mark(goal), goal.note)
    console().print(table)


def _mark(goal: Goal) -> str:
    if goal.met is None:
        return "not measured" if goal.measured == "-" else "reported"
    return "[green]met[/]" if goal.met else "[bold red]MISSED[/]"


def finish(
    name: str, options: argparse.Namespace, tables: Mapping[str, object], goals: Sequence[Goal]
) -> None:
    """Print the goals and write `<output>/<name>.json`.

    The file holds machine, command, quick, tables and goals. It is valid JSON: numbers that are
    not finite become null.

    Args:
        name: the file's name, without ending.
        options: what the parser of `arguments` returned.
        tables: anything of mappings, sequences, numbers and text; a `Spread` or another named
            tuple is written with its names.
        goals: the promises.
    """
    results = {
        "machine": machine(),
        "command": " ".join(sys.orig_argv[1:]),
        "quick": options.quick,
        "tables": tables,
        "goals": goals,
    }
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{name}.json"
    path.write_text(json.dumps(plain(results), indent=1, allow_nan=False) + "\n")
    print_goals(goals)
    console().print(f"written: {path}", soft_wrap=True)


def plain(value: object) -> object:
    """Return the same in what JSON knows; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)


def number(value: float) -> str:
    """Return a number with three digits or, of a large one, all before the point."""
    if not math.isfinite(value):
        return "-"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
