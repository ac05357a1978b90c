"""Measure students against the published one, and against what a user would pick instead.

    python benchmarks/student.py --quick

`mobilenetv2-fast` at 480x640 and at a robot's default size, the published `mobilenetv2` student
(257 bins) at the same sizes in the same runtimes, and the Depth Anything V2 Small architecture
at its working size for the same image (518x686 for 640x480; needs the extra `bench`).

All weights are random: time and memory do not depend on them. This compares speed, not depth.

Columns: `ms` is the median (10th-90th percentile) from a camera's image in memory to the depth
map in memory, all cases of a table taking turns, and `net` the network's share of it, also ms;
students answer at the image's size with confidence, Depth Anything at its own. `GMAC` are 10^9
multiply-accumulates of convolutions and matrix products (half of what torch.utils.flop_counter
counts). `of peak` is GMAC per second as a share of what this machine reaches in one large matrix
product. `MiB` is the peak of a process of its own while frames run, above what it held before
the network was made. `x ours` is the time as a multiple of that of mobilenetv2-fast in the same
table, runtime (`eager`: our torch runtime) and input size (Depth Anything, which works at a size
of its own: 480x640).

The rows `eager` are the same network in torch as one would write it, without the fused batch
norms and the memory layout of our torch runtime.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import depth_anything
import torch
from measuring import (
    Neighbours,
    Spread,
    arguments,
    finish,
    interleaved,
    print_table,
    progress,
    spread,
)
from student_cases import (
    DEPTH_ANYTHING,
    EAGER,
    EAGER_LAST,
    IMAGE,
    ONNXRUNTIME,
    OURS,
    PUBLISHED,
    TORCH,
    Case,
    Run,
    all_cores,
    camera_image,
    count_cost,
    peak_memory_mib,
    roofline_gmacs,
)
from student_goals import judge

from tiekd_ros.method.first_student import StudentSettings
from tiekd_ros.student import InputSize, Prediction

NETWORKS = (OURS, PUBLISHED, DEPTH_ANYTHING)
_REST_S = 0.01
COLUMNS = (
    "network", "runtime", "input", "M params", "GMAC", "ms", "net", "n", "of peak", "MiB", "x ours"
)  # fmt: skip


class Times(NamedTuple):
    """Milliseconds of a case's frames, and of the network alone where the runtime tells."""

    whole: list[float]
    network: list[float]


class Row(NamedTuple):
    """One line of a table; what was not measured is None."""

    network: str
    runtime: str
    input: str
    threads: int
    parameters_m: float
    gmac: float
    ms: Spread
    network_ms: float | None
    of_peak: float
    peak_mib: float | None
    times_ours: float | None

    def cells(self) -> list[object]:
        """Return what the table shows."""
        network = "-" if self.network_ms is None else self.network_ms
        memory = "-" if self.peak_mib is None else f"{self.peak_mib:.0f}"
        ratio = "-" if self.times_ours is None else self.times_ours
        gmac = f"{self.gmac:.2f}"
        share = f"{self.of_peak:.0%}" if math.isfinite(self.of_peak) else "-"
        texts = (self.network, self.runtime, self.input, f"{self.parameters_m:.2f}", gmac)
        return [*texts, self.ms, network, self.ms.n, share, memory, ratio]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write."""
    options = read_options(argv)
    for sentence in left_out(options.networks):
        print(f"left out: {sentence}", flush=True)
    tables: dict[str, object] = {}
    small = robot_size()
    main_rows: list[Row] = []
    peaks = {count: roofline_gmacs(count) for count in {options.threads, 1}}
    for size, threads in (
        (tuple(options.size), options.threads),
        (small, options.threads),
        *(((tuple(options.size), 1), (small, 1)) if options.threads > 1 else ()),
    ):
        cases = list(choose_cases(size, threads, options))
        if not cases:
            continue
        peak = peaks[threads]
        neighbours = Neighbours()
        times = time_cases(start_cases(cases), quick=options.quick)
        others = neighbours.cores()
        rows = make_rows(times, weigh(cases, options), peak)
        main_rows = main_rows or rows
        name = f"{size[0]}x{size[1]}, threads {threads}"
        print_table(
            f"Input {name}; large matrix product: {peak:.0f} GMAC/s; "
            f"cores taken by other programs meanwhile: {others:.1f}",
            COLUMNS,
            [row.cells() for row in rows],
        )
        tables[name] = {"peak_gmacs": peak, "cores_of_others": others, "rows": rows}
    at_goal = main_rows if tuple(options.size) == IMAGE else []
    finish("student", options, tables, judge(at_goal, options.threads))
    return 0


def read_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = arguments(__doc__ or "")
    parser.add_argument(
        "--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="which [all]"
    )
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        default=IMAGE,
        help="input size of the first table; goals are judged at 480 640 only",
    )
    parser.add_argument("--threads", type=int, default=min(2, all_cores()), help="CPU threads [2]")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    return parser.parse_args(argv)


def left_out(networks: Sequence[str]) -> list[str]:
    """Say what cannot be measured here, and what to install."""
    missing = []
    if not has_onnxruntime():
        missing.append("onnxruntime rows need the extra `onnx`: pip install '.[onnx]'")
    if DEPTH_ANYTHING in networks and depth_anything.missing_package():
        missing.append(depth_anything.missing_package())
    return missing


def has_onnxruntime() -> bool:
    """Whether students can be exported and run there."""
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def robot_size() -> tuple[int, int]:
    """Return the (height, width) that a robot's students get by default for such an image."""
    size = InputSize.near(*IMAGE, StudentSettings().pixels)
    return size.height, size.width


def choose_cases(size: tuple[int, int], threads: int, options: argparse.Namespace) -> list[Case]:
    """Return the cases of one table: with one thread, ours only."""
    runtimes = (TORCH, ONNXRUNTIME) if has_onnxruntime() else (TORCH,)
    ours_only = threads < options.threads
    cases = []
    for network in (OURS, PUBLISHED):
        if network in options.networks and not (ours_only and network != OURS):
            cases += [Case(network, runtime, *size, threads) for runtime in runtimes]
    if OURS in options.networks and size == tuple(options.size):
        cases += [Case(OURS, runtime, *size, threads) for runtime in (EAGER_LAST, EAGER)]
        if not options.quick and not ours_only and PUBLISHED in options.networks:
            cases.append(Case(PUBLISHED, EAGER, *size, threads))
    wants_other = DEPTH_ANYTHING in options.networks and not depth_anything.missing_package()
    if wants_other and not ours_only and size == tuple(options.size):
        working = depth_anything.working_size(*IMAGE)
        cases += [Case(DEPTH_ANYTHING, runtime, *working, threads) for runtime in runtimes]
    return cases


def weigh(cases: Sequence[Case], options: argparse.Namespace) -> dict[Case, float]:
    """Return each case's peak memory in MiB; nothing where it is not wanted."""
    if options.no_memory or cases[0].threads != options.threads:
        return {}
    with progress() as bar:
        tracked = bar.track(cases, description="peak memory, each in its own process")
        return {case: peak_memory_mib(case) for case in tracked}


def make_rows(times: Mapping[Case, Times], memory: Mapping[Case, float], peak: float) -> list[Row]:
    """Return a table's rows.

    Args:
        times: of each case.
        memory: peak in MiB of those that it was measured for.
        peak: what the machine reaches, 10^9 multiply-accumulates a second; NaN: not known.
    """
    ours = {
        (c.runtime, c.size): spread(t.whole).median for c, t in times.items() if c.network == OURS
    }
    rows = []
    for case, (whole, network) in times.items():
        cost, ms = count_cost(case), spread(whole)
        runtime = ONNXRUNTIME if case.runtime == ONNXRUNTIME else TORCH
        base = ours.get((runtime, IMAGE if case.network == DEPTH_ANYTHING else case.size))
        rows.append(
            Row(
                case.network,
                case.runtime,
                f"{case.height}x{case.width}",
                case.threads,
                cost.parameters_m,
                cost.gmac,
                ms,
                spread(network).median if network else None,
                1e3 * cost.gmac / ms.median / peak,
                memory.get(case),
                ms.median / base if base else None,
            )
        )
    return rows


def start_cases(cases: Sequence[Case]) -> dict[Case, Run]:
    """Start every case."""
    with progress() as bar:
        return {case: case.start() for case in bar.track(cases, description="starting networks")}


def time_cases(runs: Mapping[Case, Run], *, quick: bool) -> dict[Case, Times]:
    """Time every case; several turns of the fast ones to one of the slow."""
    image = camera_image()
    found = {case: Times([], []) for case in runs}
    cases = {str(case): case for case in runs}

    def answer(case: Case) -> None:
        prediction = runs[case](image)
        if isinstance(prediction, Prediction):
            found[case].network.append(prediction.times.network)

    calls = {name: partial(answer, case) for name, case in cases.items()}
    fast = {name: call for name, call in calls.items() if not cases[name].is_slow}
    slow = {name: call for name, call in calls.items() if cases[name].is_slow}
    torch.set_num_threads(next(iter(runs)).threads)
    for turn in range(3 if quick else 7):
        for group, repeats in ((fast, 10), (slow, 1)):
            warm_up = 0 if turn or group is slow else 2
            times = interleaved(group, repeats=repeats, warm_up=warm_up, rest_s=_REST_S)
            for name, values in times.items():
                found[cases[name]].whole.extend(values)
                del found[cases[name]].network[:warm_up]  # which came first of all
    return found


if __name__ == "__main__":
    sys.exit(main())
