"""The harness of the benchmark scripts: options, timing, seeds, goals, tables, one results file.

    def main(argv=None):
        options = parser(__doc__).parse_args(argv)
        report = Report("node", options)
        report.table("idle", "Image to depth, ms", [{"input": "480x640", "ms": spread(times)}])
        report.goals.append(Goal.at_most("p95", 12.3, 15.0, "ms"))
        return report.finish()

    if __name__ == "__main__":
        run(main)

A table is a list of rows, each a dict of cells by column. Cells may be text, numbers, None ("-"),
a `Spread` (of repeated timings) or a `MeanStd` (over seeds).

`interleaved` times calls in turn. `Report.experiment` makes the runs of an experiment over arms
and seeds, several at a time, and goes on where it was interrupted. `Remote` is an object in a
process of its own; `in_own_process` calls one function there. `peak_mib`, `cuda_peak_mib`,
`memory_mib` and `cpu_seconds` measure memory and processor time.

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
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from unittest.mock import patch

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.student.checkpoint import replace_durably

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


def parser(
    description: str, *, has_quick: bool = True, is_parent: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark: --quick and --json.

    Args:
        description: a script's docstring; the first line sums it up, all of it ends the help.
        has_quick: whether there is less that it can do.
        is_parent: for the `parents` of a command's parser.
    """
    made = argparse.ArgumentParser(
        add_help=not is_parent,
        description=description.partition("\n")[0],
        epilog=inspect.cleandoc(description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if has_quick:
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
    """The tables, runs and goals of one script: printed as they come, written as one JSON file."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.path: Path = options.json or RESULTS / f"{name}.json"
        self.tables: dict[str, object] = {}
        self.runs: list[dict[str, Any]] = []
        self.goals: list[Goal] = []
        self._machine = machine()
        self._quick = getattr(options, "quick", False)
        self._is_resumed = options.json is not None

    def experiment(
        self,
        runs: Sequence[tuple[Mapping[str, Any], Callable[[], Mapping[str, Any]]]],
        workers: int = 0,
    ) -> list[dict[str, Any]]:
        """Make runs, each one training or measurement, and return what came of all of them.

        The results file is written after each run. Runs that it has already are not repeated,
        where the user named the file (`--json`).

        Args:
            runs: identity of each (such as arm and seed), and the call that makes it.
            workers: processes that make them, with calls that can be pickled; 0: none but this.

        Returns:
            Identity, result and `seconds` of each run, in order.
        """
        if self._is_resumed and self.path.exists():
            self.runs = json.loads(self.path.read_text()).get("runs", [])
        keys: list[Any] = [plain(key) for key, _ in runs]
        left = [n for n, key in enumerate(keys) if self._find(key) is None]
        with progress() as bar:
            task = bar.add_task("runs", total=len(keys), completed=len(keys) - len(left))
            for n, result in _results([runs[n][1] for n in left], workers):
                made: Any = plain({**keys[left[n]], **result})
                self.runs.append(made)
                self.write()
                bar.advance(task)
        return [found for key in keys if (found := self._find(key)) is not None]

    def _find(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        same = (own for own in self.runs if all(own.get(k) == v for k, v in key.items()))
        return next(same, None)

    def table(
        self,
        key: str,
        title: str,
        rows: Sequence[Row],
        data: object = None,
        bold: Iterable[tuple[int, str]] = (),
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
        print_table(title, rows, dict.fromkeys(bold, "bold"))

    def write(self) -> None:
        """Replace the results file at one stroke."""
        results = {"machine": self._machine, "command": " ".join(sys.orig_argv[1:])}
        results |= {"quick": self._quick, "tables": self.tables, "goals": self.goals}
        results |= {"runs": self.runs} if self.runs else {}
        write_json(self.path, results)

    def finish(self) -> int:
        """Print the goals, write the file and return the exit code."""
        self.write()
        if self.goals:
            print_goals(self.goals)
        console().print(f"written: {self.path}", soft_wrap=True)
        return MISSED if any(goal.met is False for goal in self.goals) else 0


def _results(
    calls: Sequence[Callable[[], Mapping[str, Any]]], workers: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield number and result of each call, as they end."""
    if not workers:
        yield from ((n, _timed(call)) for n, call in enumerate(calls))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        numbers = {pool.submit(_timed, call): n for n, call in enumerate(calls)}
        yield from ((numbers[future], future.result()) for future in as_completed(numbers))


def _timed(call: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    start = time.monotonic()
    result = call()
    return {"seconds": round(time.monotonic() - start, 1), **result}


def print_table(
    title: str, rows: Sequence[Row], styles: Mapping[tuple[int, str], str] | None = None
) -> None:
    """Print a table, numbers to the right; `styles` are rich's, by (row, column)."""
    table = Table(title=Text(title), title_justify="left")
    columns = columns_of(rows)
    for column in columns:
        is_text = all(isinstance(row.get(column), str | None) for row in rows)
        table.add_column(Text(column), justify="left" if is_text else "right", overflow="fold")
    for index, row in enumerate(rows):
        shown = ((cell_text(row.get(c)), (styles or {}).get((index, c), "")) for c in columns)
        table.add_row(*(Text(text, style) for text, style in shown))
    console().print(table)


def markdown(title: str, rows: Sequence[Row], bold: Iterable[tuple[int, str]] = ()) -> str:
    """Return the same table as Markdown."""
    columns, strong = columns_of(rows), set(bold)
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for index, row in enumerate(rows):
        cells = {column: cell_text(row.get(column)) for column in columns}
        shown = (f"**{t}**" if (index, c) in strong else t for c, t in cells.items())
        lines.append(f"| {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def print_goals(goals: Sequence[Goal]) -> None:
    colours = {"met": "green", "MISSED": "bold red"}
    rows = [
        {"goal": g.name, "wanted": g.wanted, "measured": g.measured, "": g.verdict, "note": g.note}
        for g in goals
    ]
    print_table("Goals", rows, {(n, ""): colours.get(g.verdict, "") for n, g in enumerate(goals)})


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


def write_json(path: Path, results: object) -> None:
    """Replace a file at one stroke by what `plain` makes of the results: valid JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(results), indent=1, allow_nan=False) + "\n"
    replace_durably(path, text.encode())


def plain(value: object) -> object:
    """Return the same in what JSON knows: numbers that are not finite become None."""
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
    """Return what the numbers depend on: processor, cores, load, GPU, versions, date."""
    cpu = [w for w in Path("/proc/cpuinfo").read_text().splitlines() if w.startswith("model name")]
    return {
        "cpu": cpu[0].partition(":")[2].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
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


def peak_mib(call: Callable[[], object], above: float | None = None) -> float:
    """Return the process's peak memory during a call, above so many MiB [what it held before].

    Memory that was freed before is given back first: it neither serves the call nor counts.
    """
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    above = memory_mib("VmHWM") if above is None else above
    call()
    return memory_mib("VmHWM") - above


def cuda_peak_mib(call: Callable[[], object]) -> float:
    """Return by how many MiB a call raises the memory of the CUDA device."""
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what a function of a module gives in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


class Remote(Closing):
    """An object of a module's class in a process of its own; its methods are called from here.

        camera = Remote(Camera, pictures, OMP_NUM_THREADS="1")
        stamps = camera.call("play", 15.0)
        camera.close()  # calls the object's own `close`, if it has one

    The process ends with this one, even where this one is killed.
    """

    def __init__(
        self, make: Callable[..., Any], *arguments: Any, wait: bool = True, **environment: str
    ) -> None:
        """Start it.

        Args:
            make: class or function that gives the object.
            arguments: for it.
            wait: until the object is there; else call `answer` once before all other methods.
            environment: variables of the process, besides this one's.

        Raises:
            TiekdError: the process has ended, as in all methods that wait for an answer.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        with patch.dict(os.environ, environment):
            self.process.start()
        other.close()
        self._name = make.__name__
        if wait:
            self.answer()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method and return what it gives."""
        self.send(method, *arguments)
        return self.answer()

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method and go on meanwhile; `answer` returns what it gives."""
        with suppress(ConnectionError):  # it has ended: `answer` says so
            self._pipe.send((method, arguments))

    def answer(self) -> Any:
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            raise TiekdError(f"{self._name} ended with {code}; see its message above") from None

    def close(self, patience_s: float = 20.0) -> None:
        """Let it end; kill it where that takes too long."""
        self._pipe.close()
        self.process.join(patience_s)
        self.kill()

    def kill(self) -> None:
        """End it as a power cut does."""
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, make: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Answer the calls of a `Remote` until it is closed."""
    own = make(*arguments)
    pipe.send(None)
    try:
        while True:
            method, words = pipe.recv()
            pipe.send(getattr(own, method)(*words))
    except (EOFError, ConnectionError):  # closed, or its process is no more
        getattr(own, "close", lambda: None)()
