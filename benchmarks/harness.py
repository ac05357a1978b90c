"""The harness of the benchmark scripts: options, timing, seeds, goals, tables, one results file.

    def main(argv=None):
        options = parser(__doc__).parse_args(argv)
        report = Report("node", options)
        report.table("idle", "Image to depth, ms", [{"input": "480x640", "ms": spread(times)}])
        report.goals.append(Goal.at_most("p95", 12.3, 15.0, "ms"))
        return report.finish()

    if __name__ == "__main__":
        run(main)

Exit codes: 0, 1 where a goal was missed, 2 where the script broke and wrote no results.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import inspect
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tiekd_ros.core.errors import TiekdError

RESULTS = Path("benchmarks") / "results"
MISSED, BROKE = 1, 2  # exit codes
_WIDTH = 160  # characters
_LAYERS = ("onnxruntime", "onnxruntime-gpu", "transformers", "tiekd_ros")

Row = dict[str, Any]
"""One line of a table, its cells by column."""


class Spread(NamedTuple):
    """Repeated measurements in short: median, 10th and 90th percentile, how many."""

    median: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)}-{number(self.high)})"


class MeanStd(NamedTuple):
    """One value a seed in short: mean, sample standard deviation (NaN of one), how many."""

    mean: float
    std: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + (f" ± {self.std:.3f}" if self.n > 1 else "")


class Goal(NamedTuple):
    """One promise and what came of it.

    `met` is None where there is no limit to judge by, or nothing was measured: `measured` is "-".
    """

    name: str
    wanted: str
    measured: str
    met: bool | None
    note: str = ""

    @classmethod
    def at_most(
        cls, name: str, value: float | None, limit: float, unit: str, note: str = ""
    ) -> Goal:
        """Return the goal that a value does not exceed a limit; None or NaN: not measured."""
        return cls._limit(name, value, "<=", limit, unit, note)

    @classmethod
    def at_least(
        cls, name: str, value: float | None, limit: float, unit: str = "x", note: str = ""
    ) -> Goal:
        """Return the goal that a value reaches a limit; None or NaN: not measured."""
        return cls._limit(name, value, ">=", limit, unit, note)

    @classmethod
    def _limit(
        cls, name: str, value: float | None, sign: str, limit: float, unit: str, note: str
    ) -> Goal:
        wanted = f"{sign} {limit:g} {unit}".rstrip()
        if value is None or math.isnan(value):
            return cls(name, wanted, "-", None, note)
        met = value <= limit if sign == "<=" else value >= limit
        return cls(name, wanted, f"{number(value)} {unit}".rstrip(), met, note)

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured" if self.measured == "-" else "reported"
        return "met" if self.met else "MISSED"


def parser(description: str, *, is_parent: bool = False) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark.

    Args:
        description: a script's docstring; the first line sums it up, all of it ends the help.
        is_parent: for the `parents` of a command's parser.
    """
    made = argparse.ArgumentParser(
        add_help=not is_parent,
        description=description.partition("\n")[0],
        epilog=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--quick", action="store_true", help="fewer repeats and cases")
    made.add_argument(
        "--json", type=Path, metavar="FILE", help=f"where the results go [{RESULTS}/SCRIPT.json]"
    )
    return made


def run(main: Callable[[], int]) -> NoReturn:
    """End the process with a script's exit code."""
    try:
        code = main()
    except (TiekdError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        code = BROKE
    except Exception:
        traceback.print_exc()
        code = BROKE
    sys.exit(code)


class Report:
    """The tables, runs and goals of one script: printed as they come, written as one JSON file.

    A run is one training or measurement of an experiment over arms and seeds, a mapping that its
    key is part of. Runs are written as they come, so an interrupted experiment can go on.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.path: Path = options.json or RESULTS / f"{name}.json"
        self.tables: dict[str, object] = {}
        self.runs: list[dict[str, Any]] = []
        self.goals: list[Goal] = []
        self._quick = options.quick

    def resume(self) -> None:
        """Take over the runs that the results file has already."""
        if self.path.exists():
            self.runs = json.loads(self.path.read_text()).get("runs", [])

    def has_run(self, key: Mapping[str, Any]) -> bool:
        wanted: Any = plain(key)
        return any(all(own.get(k) == v for k, v in wanted.items()) for own in self.runs)

    def add_run(self, result: Mapping[str, Any]) -> None:
        """Keep a run's key and result, and write the file."""
        made: Any = plain(result)
        self.runs.append(made)
        self.write()

    def table(
        self,
        key: str,
        title: str,
        rows: Sequence[Row],
        data: object = None,
        bold: Collection[tuple[int, str]] = (),
    ) -> None:
        """Print a table and keep it for the results file.

        Args:
            key: its name in the file.
            title: what is printed above it.
            rows: its lines.
            data: goes into the file in place of the rows.
            bold: (row, column) of the cells to stress.
        """
        self.tables[key] = rows if data is None else data
        print_table(title, rows, bold)

    def write(self) -> None:
        """Replace the results file at one stroke.

        It is valid JSON: numbers that are not finite become null, a named tuple a mapping.
        """
        results = {"machine": machine(), "command": " ".join(sys.orig_argv[1:])}
        results |= {"quick": self._quick, "tables": self.tables, "goals": self.goals}
        results |= {"runs": self.runs} if self.runs else {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(plain(results), indent=1, allow_nan=False) + "\n")
        new.replace(self.path)

    def finish(self) -> int:
        """Print the goals, write the file and return the exit code."""
        self.write()
        if self.goals:
            print_goals(self.goals)
        console().print(f"written: {self.path}", soft_wrap=True)
        return MISSED if any(goal.met is False for goal in self.goals) else 0


def print_table(title: str, rows: Sequence[Row], bold: Collection[tuple[int, str]] = ()) -> None:
    """Print a table, the first column to the left, the others to the right."""
    table = Table(title=title, title_justify="left")
    columns = columns_of(rows)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(rows):
        cells = {column: cell_text(row.get(column)) for column in columns}
        shown = (f"[bold]{t}[/]" if (index, c) in bold else t for c, t in cells.items())
        table.add_row(*shown)
    console().print(table)


def markdown(title: str, rows: Sequence[Row], bold: Collection[tuple[int, str]] = ()) -> str:
    """Return the same table as Markdown."""
    columns = columns_of(rows)
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for index, row in enumerate(rows):
        cells = {column: cell_text(row.get(column)) for column in columns}
        shown = (f"**{t}**" if (index, c) in bold else t for c, t in cells.items())
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def print_goals(goals: Sequence[Goal]) -> None:
    table = Table(title="Goals", title_justify="left")
    for column in ("goal", "wanted", "measured", "", "note"):
        table.add_column(column, overflow="fold")
    colours = {"met": "[green]", "MISSED": "[bold red]"}
    for goal in goals:
        verdict = f"{colours.get(goal.verdict, '')}{goal.verdict}"
        table.add_row(goal.name, goal.wanted, goal.measured, verdict, goal.note)
    console().print(table)


def columns_of(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


def cell_text(cell: object) -> str:
    if cell is None:
        return "-"
    return number(cell) if isinstance(cell, float) else str(cell)


def best_cells(rows: Sequence[Row], best: Mapping[str, Callable[[Any], Any]]) -> set[Any]:
    """Return (row, column) of the best `MeanStd` of each column; `best` is min or max by column."""
    found = set()
    for column, choose in best.items():
        means = [row[column].mean for row in rows]
        found |= {(index, column) for index, mean in enumerate(means) if mean == choose(means)}
    return found


def console() -> Console:
    """Return the output for tables: what is no terminal gets them wide, whole for a report."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDTH
    return Console(width=width)


def progress() -> Progress:
    """Return a progress bar on the error stream: the tables are what a pipe gets."""
    errors = Console(stderr=True)
    return Progress(
        *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
        TimeElapsedColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
        refresh_per_second=1,  # drawing takes time from what is measured
    )


def number(value: float) -> str:
    """Return a number with three digits or, of a large one, all before the point."""
    if not math.isfinite(value):
        return "-"
    if 0 < abs(value) < 1e-3:
        return f"{value:.0e}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


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


def machine() -> dict[str, object]:
    """Return what the numbers depend on: processor, cores, GPU, versions, date."""
    cpu = [w for w in Path("/proc/cpuinfo").read_text().splitlines() if w.startswith("model name")]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version for name in _LAYERS if (version := _version(name)) is not None},
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of the values that are finite; NaN where none is."""
    finite = [value for value in values if math.isfinite(value)]
    low, median, high = (float(q) for q in np.percentile(finite or [math.nan], (10, 50, 90)))
    return Spread(median, low, high, len(finite))


def mean_std(values: Sequence[float]) -> MeanStd:
    """Return mean and sample standard deviation of at least one value, one a seed."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    return MeanStd(float(np.mean(values)), std, len(values))


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
    """The cores that other programs kept busy since this was made; Linux only."""

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


def cpu_seconds(pid: int) -> float:
    """Return the processor time that a process has used, of all threads."""
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(field: str, pid: int | str = "self") -> float:
    """Return a process's resident memory: VmRSS now, VmHWM at its peak; Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 1024
    raise TiekdError(f"/proc/{pid}/status has no {field}: memory is measured on Linux only")


def start_peak() -> None:
    """Give back memory that was freed, and let VmHWM start anew from what is resident now."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a module gives in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def cuda_peak_mib(call: Callable[[], object]) -> float:
    """Return by how many MiB a call raises the memory of the CUDA device."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


class JsonProcess:
    """A child process, a script of this folder, that answers commands by lines of JSON.

    It ends when its standard input does, so none is left behind by a parent that is killed.
    The child answers with `say`.
    """

    def __init__(self, script: str, *arguments: object, **environment: str) -> None:
        folder = Path(__file__).parent
        paths = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [sys.executable, str(folder / script), *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths, **environment},
            text=True,
        )

    def read(self) -> dict[str, Any]:
        """Return the next answer.

        Raises:
            TiekdError: the process has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            raise TiekdError(f"{self.process.args!r} ended with {code}; see its own words above")
        found: dict[str, Any] = json.loads(line)
        return found

    def tell(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> dict[str, Any]:
        self.tell(command)
        return self.read()

    def close(self, patience_s: float = 20.0) -> None:
        """End its standard input and wait; kill it where that is not enough."""
        if self.process.poll() is None:
            try:
                self.process.communicate(timeout=patience_s)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.communicate()


def say(**values: Any) -> None:
    """Answer the parent `JsonProcess`."""
    print(json.dumps(values), flush=True)
