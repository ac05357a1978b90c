"""Measure students against the published one, and against what a user would pick instead.

    python benchmarks/student.py --quick
    python benchmarks/student.py --device cuda

The default student and `mobilenetv2-fast` at 480x640 and at a robot's default size, the published
`mobilenetv2` student (257 bins) at the same sizes in the same runtimes, and the Depth Anything V2
Small architecture at its working size for the same image (518x686 for 640x480; needs the extra
`bench`).

All weights are random: time and memory do not depend on them. This compares speed, not depth.

Columns: `ms` is the median (10th-90th percentile) from a camera's image in memory to the depth
map in memory, all cases of a table taking turns, and `net` the network's share of it, also ms;
students answer at the image's size with confidence, Depth Anything at its own. `GMAC` are 10^9
multiply-accumulates of convolutions and matrix products (half of what torch.utils.flop_counter
counts). `% of peak` is GMAC per second as a share of what this machine reaches in one large matrix
product. `MiB` is the peak of a process of its own while frames run, above what it held before
the network was made. `x ours` is the time as a multiple of that of the default student in the same
table, runtime (`eager`: our torch runtime) and input size (Depth Anything, which works at a size
of its own: 480x640).

The rows `eager` are the same network in torch as one would write it, without the fused batch
norms and the memory layout of our torch runtime.

On a CUDA device `net` is taken between two events of the device, and `MiB` is the device's
memory at its peak from before the start of the network, weights included, to the end of a frame.
A CUDA graph takes its memory when it is captured, at the start, so the start counts for all,
with what it needs for a while.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.util
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import depth_anything
import numpy as np
import torch
from harness import (
    Goal,
    Report,
    Row,
    cuda_peak_mib,
    in_own_process,
    interleaved,
    memory_mib,
    number,
    parser,
    peak_mib,
    progress,
    run,
    spread,
)
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tiekd_ros.core.images import RgbImage
from tiekd_ros.method.first_student import StudentSettings
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.networks.official import KITTI_BINS
from tiekd_ros.student.preprocessing import normalise, resize_image
from tiekd_ros.student.runtimes.base import Prediction
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

OURS, FAST = "efficientnet-lite0", "mobilenetv2-fast"
PUBLISHED, DEPTH_ANYTHING = "mobilenetv2", "depth-anything-v2-small"
TORCH, ONNXRUNTIME = "torch", "onnxruntime"
EAGER, EAGER_LAST = "eager", "eager, channels last"
"""The same network in torch as a user would write it: no fused batch norms, no own layout."""

IMAGE = (480, 640)
"""Height and width of the camera's image; every case starts from it, and ours answer at it."""
NETWORKS = (OURS, FAST, PUBLISHED, DEPTH_ANYTHING)
_REST_S = 0.01
_FASTER = {PUBLISHED: 60.0, DEPTH_ANYTHING: 15.0}
_ONNXRUNTIME_FASTER = 2.0
_MOST_OF_FAST = 1.3
_MOST_MS, _ON_THREADS = 30.0, 2
_MOST_CUDA_MS = 1.0

Run = Callable[[RgbImage], object]


@dataclass(frozen=True)
class Case:
    """One network in one runtime at one input size."""

    network: str
    runtime: str
    height: int = IMAGE[0]
    width: int = IMAGE[1]
    threads: int = 1
    device: str = "cpu"

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def is_slow(self) -> bool:
        """True where one frame takes most of a second on a small CPU, or more."""
        return self.network not in (OURS, FAST) and self.device == "cpu"

    def student(self) -> Student:
        """Return an untrained student: its speed does not depend on its weights."""
        torch.manual_seed(0)
        bins = KITTI_BINS if self.network == PUBLISHED else DepthBins()
        size = InputSize(self.height, self.width)
        return Student.fresh(StudentCard(bins=bins, input_size=size, architecture=self.network))

    def start(self) -> Run:
        """Return what turns a camera image into a depth map, warmed."""
        torch.set_num_threads(self.threads)
        if self.network == DEPTH_ANYTHING and self.runtime == ONNXRUNTIME:
            run = depth_anything.start_onnxruntime(self.size, self.threads)
        elif self.network == DEPTH_ANYTHING:
            run = depth_anything.start_torch(self.size, self.device)
        elif self.runtime in (EAGER, EAGER_LAST):
            run = self._start_eager()
        else:
            factory = RuntimeFactory(torch.device(self.device), self.runtime, self.threads)
            return factory.make(self.student()).predict  # has warmed itself
        run(camera_image())
        return run

    def _start_eager(self) -> Run:
        is_last = self.runtime == EAGER_LAST
        layout = torch.channels_last if is_last else torch.contiguous_format
        student = self.student()
        network = student.network.eval().to(self.device)
        if is_last:
            network = network.to(memory_format=layout)

        @torch.inference_mode()
        def run(image: RgbImage) -> object:
            resized = resize_image(image, student.card.input_size)
            batch = torch.from_numpy(resized)[None].to(self.device)
            return network.predict_depth(normalise(batch).contiguous(memory_format=layout)).cpu()

        return run

    def cost(self) -> tuple[float, float]:
        """Return millions of parameters and, of one frame, 10^9 multiply-accumulates.

        These are half the operations that torch counts: convolutions and matrix products, of
        attention too. Nothing runs.
        """
        network: nn.Module
        if self.network == DEPTH_ANYTHING:
            network = depth_anything.build_network()
        else:
            network = self.student().network.eval()
        x = torch.zeros(1, 3, *self.size, device="meta")
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            network.to("meta")(x)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return parameters / 1e6, counter.get_total_flops() / 2e9

    def memory_mib(self) -> float:
        """Return this process's peak while frames run, above what it held with all libraries.

        What the start took for a while (the export to onnxruntime) is given back, not counted.
        """
        for package in ("onnx", "onnxruntime") if self.runtime == ONNXRUNTIME else ():
            importlib.import_module(package)
        if self.network == DEPTH_ANYTHING:
            depth_anything.build_network()
        before = memory_mib("VmRSS")
        run = self.start()
        gc.collect()
        image, frames = camera_image(), 1 if self.is_slow else 3
        return peak_mib(lambda: [run(image) for _ in range(frames)], above=before)


def camera_image() -> RgbImage:
    return np.random.default_rng(0).integers(0, 256, (*IMAGE, 3), np.uint8)


def roofline_gmacs(threads: int, side: int = 2048) -> float:
    """Return the best of some float32 matrix products, 10^9 multiply-accumulates a second."""
    torch.set_num_threads(threads)
    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds) / 1e9


class Times(NamedTuple):
    """Milliseconds of a case's frames, and of the network alone where the runtime tells."""

    whole: list[float]
    network: list[float]


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    report = Report("student", options)
    if not has_onnxruntime():
        print("left out: onnxruntime needs the extra `onnx`: pip install '.[onnx]'", flush=True)
    if DEPTH_ANYTHING in options.networks and depth_anything.missing_package():
        print(f"left out: {depth_anything.missing_package()}", flush=True)
        options.networks = [name for name in options.networks if name != DEPTH_ANYTHING]
    if options.device == "cpu":
        tables = measure_on_cpu(options, report)
        at_goal = tables.get((IMAGE, options.threads), [])
        report.goals += judge(at_goal, options.threads)
        report.goals += judge_size(tables.get((robot_size(), options.threads), []))
    else:
        report.goals.append(measure_on_cuda(options, report))
    return report.finish()


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    made.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="[all]")
    made.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("HEIGHT", "WIDTH"),
        default=IMAGE,
        help="input size of the first table; goals are judged at 480 640 only",
    )
    made.add_argument(
        "--threads", type=int, default=min(2, len(os.sched_getaffinity(0))), help="CPU threads [2]"
    )
    made.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    return made.parse_args(argv)


def has_onnxruntime() -> bool:
    return all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))


def robot_size() -> tuple[int, int]:
    """Return the (height, width) that a robot's students get by default for such an image."""
    size = InputSize.near(*IMAGE, StudentSettings().pixels)
    return size.height, size.width


def measure_on_cpu(
    options: argparse.Namespace, report: Report
) -> dict[tuple[tuple[int, int], int], list[Row]]:
    """Measure a table for each size and number of threads; return the rows of each."""
    tables: dict[tuple[tuple[int, int], int], list[Row]] = {}
    for threads in sorted({options.threads, 1}, reverse=True):
        peak = roofline_gmacs(threads)
        for height, width in (options.size, robot_size()):
            cases = choose_cases((height, width), threads, options)
            if not cases:
                continue
            with progress() as bar:
                named = bar.track(cases, description="starting networks")
                runs = {case: case.start() for case in named}
            times = time_cases(runs, quick=options.quick)
            memory = {}
            if threads == options.threads and not options.no_memory:
                with progress() as bar:
                    named = bar.track(cases, description="peak memory, each in its own process")
                    memory = {case: in_own_process(Case.memory_mib, case) for case in named}
            rows = make_rows(times, memory, peak)
            tables[(height, width), threads] = rows
            name = f"{height}x{width}, threads {threads}"
            title = f"Input {name}; large matrix product: {peak:.0f} GMAC/s"
            report.table(name, title, rows, data={"peak_gmacs": peak, "rows": rows})
    return tables


def choose_cases(size: tuple[int, int], threads: int, options: argparse.Namespace) -> list[Case]:
    """Return the cases of one table: with one thread, fast ones only."""
    runtimes = (TORCH, ONNXRUNTIME) if has_onnxruntime() else (TORCH,)
    candidates = (OURS, FAST) if threads < options.threads else NETWORKS
    networks = [name for name in candidates if name in options.networks]
    pairs = [(n, runtime) for n in networks if n != DEPTH_ANYTHING for runtime in runtimes]
    is_first = size == tuple(options.size)
    if is_first and OURS in networks:
        pairs += [(OURS, EAGER_LAST), (OURS, EAGER)]
        if PUBLISHED in networks and not options.quick:
            pairs.append((PUBLISHED, EAGER))
    cases = [Case(network, runtime, *size, threads) for network, runtime in pairs]
    if is_first and DEPTH_ANYTHING in networks:
        working = depth_anything.working_size(*IMAGE)
        cases += [Case(DEPTH_ANYTHING, runtime, *working, threads) for runtime in runtimes]
    return cases


def measure_on_cuda(options: argparse.Namespace, report: Report) -> Goal:
    """Measure all networks in one table; return the goal of ours at 480x640."""
    cases = [
        Case(network, runtime, *size, device=options.device)
        for size in (IMAGE, robot_size())
        for network, runtime in ((OURS, TORCH), (OURS, EAGER_LAST), (PUBLISHED, TORCH))
    ]
    if not depth_anything.missing_package():
        working = depth_anything.working_size(*IMAGE)
        cases.append(Case(DEPTH_ANYTHING, TORCH, *working, device=options.device))
    runs: dict[Case, Run] = {}

    def start(case: Case) -> None:
        runs[case] = case.start()
        runs[case](camera_image())

    memory = {case: cuda_peak_mib(partial(start, case)) for case in cases}
    rows = make_rows(time_cases(runs, quick=options.quick), memory, math.nan)
    report.table("networks", torch.cuda.get_device_name(), rows)
    return Goal.at_most("network p50, 480x640", rows[0]["net"], _MOST_CUDA_MS, "ms")


def make_rows(times: Mapping[Case, Times], memory: Mapping[Case, float], peak: float) -> list[Row]:
    """Return a table's rows; what was not measured is None.

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
        (parameters_m, gmac), ms = case.cost(), spread(whole)
        runtime = ONNXRUNTIME if case.runtime == ONNXRUNTIME else TORCH
        base = ours.get((runtime, IMAGE if case.network == DEPTH_ANYTHING else case.size))
        rows.append(
            {
                "network": case.network,
                "runtime": case.runtime,
                "input": f"{case.height}x{case.width}",
                "M params": parameters_m,
                "GMAC": gmac,
                "ms": ms,
                "net": spread(network).median if network else None,
                "n": ms.n,
                "% of peak": 100 * 1e3 * gmac / ms.median / peak,
                "MiB": memory.get(case),
                "x ours": ms.median / base if base else None,
            }
        )
    return rows


def time_cases(runs: Mapping[Case, Run], *, quick: bool) -> dict[Case, Times]:
    """Time every case; several turns of the fast ones to one of the slow."""
    image = camera_image()
    found = {case: Times([], []) for case in runs}
    cases = {str(case): case for case in runs}

    def answer(case: Case) -> None:
        prediction = runs[case](image)
        if isinstance(prediction, Prediction):
            found[case].network.append(prediction.times.network)

    fast, slow = (
        {name: partial(answer, case) for name, case in cases.items() if case.is_slow is is_slow}
        for is_slow in (False, True)
    )
    torch.set_num_threads(next(iter(runs)).threads)
    for turn in range(3 if quick else 7):
        for group, repeats in ((fast, 10), (slow, 1)):
            warm_up = 0 if turn or group is slow else 2
            times = interleaved(group, repeats=repeats, warm_up=warm_up, rest_s=_REST_S)
            for name, values in times.items():
                found[cases[name]].whole.extend(values)
                del found[cases[name]].network[:warm_up]  # which came first of all
    return found


def judge_size(rows: Sequence[Row]) -> list[Goal]:
    """Return the goals at a robot's default size: ours against `mobilenetv2-fast`."""
    ms = {(row["network"], row["runtime"]): row["ms"].median for row in rows}
    goals = []
    for runtime in (ONNXRUNTIME, TORCH):
        ours, fast = ms.get((OURS, runtime)), ms.get((FAST, runtime))
        ratio = ours / fast if ours and fast else None
        name = f"{OURS}: time of {FAST} at a robot's size, {runtime}"
        goals.append(Goal.at_most(name, ratio, _MOST_OF_FAST, "x"))
    return goals


def judge(rows: Sequence[Row], threads: int) -> list[Goal]:
    """Return the goals on a CPU; not measured where a row that one needs is missing.

    Args:
        rows: of the table at 480x640.
        threads: that they were measured with.
    """
    by_key = {(row["network"], row["runtime"]): row for row in rows}
    ms = {key: row["ms"].median for key, row in by_key.items()}

    def faster(name: str, slow: tuple[str, str], runtime: str, least: float, note: str) -> Goal:
        fast = OURS, runtime
        ratio = ms[slow] / ms[fast] if slow in ms and fast in ms else None
        return Goal.at_least(name, ratio, least, note=note)

    goals = [
        faster(f"{OURS} faster than {network}, {runtime}", (network, runtime), runtime, most, "")
        for network, most in _FASTER.items()
        for runtime in (TORCH, ONNXRUNTIME)
    ]
    note = ""
    if (OURS, ONNXRUNTIME) in ms:
        shares = [by_key[OURS, runtime]["% of peak"] for runtime in (TORCH, ONNXRUNTIME)]
        note = (
            f"faster than eager torch: {ms[OURS, EAGER] / ms[OURS, ONNXRUNTIME]:.1f} x; our torch "
            f"runtime reaches {shares[0]:.0f}% of the machine's peak, onnxruntime {shares[1]:.0f}%"
        )
    name = f"{OURS}: onnxruntime faster than torch"
    goals.append(faster(name, (OURS, TORCH), ONNXRUNTIME, _ONNXRUNTIME_FASTER, note))
    name, note = f"{OURS}: image to depth, 480x640, threads: {_ON_THREADS}", ""
    ours = [row for row in rows if row["network"] == OURS and threads == _ON_THREADS]
    best = min(ours, key=lambda row: row["ms"].median, default=None)
    found = None if best is None else best["ms"].median
    if best is not None:
        alone = "" if best["net"] is None else f"{number(best['net'])} ms of it the network; "
        at_peak = number(found * best["% of peak"] / 100)
        note = f"{best['runtime']}; {alone}at this machine's peak: {at_peak} ms"
    return [*goals, Goal.at_most(name, found, _MOST_MS, "ms", note)]


if __name__ == "__main__":
    run(main)
