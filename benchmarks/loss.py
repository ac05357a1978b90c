"""The fused loss against the same formulas in plain tensor code: time, memory, agreement.

Both compute the loss and its gradient from the logits of a depth probability map (DPM), B x 257
x h x w, in the memory format that training uses (channels last): the published loss (`paper`)
and the corrected one (`tiekd`), at the size of the published KITTI training (352 x 704) and at
the size at which a robot trains (a quarter of 240 x 320).

Time is that of forward and backward, in turn. The straightforward loss is timed on the same logits
channels first as well, and the fused one is judged by the faster of the two. Memory is what the
peak of the process's resident memory grows by from before the forward pass, with the logits
already there, to after the backward pass (VmHWM in /proc/self/status), each in a process of its
own; that contains the gradient of the logits, which both have to give. Agreement is the difference
of the loss, relative, or of the gradient, relative to the largest gradient, whichever is more, in
float64. In float32 the rounding inside SSIM, which both share, is larger than what sets them
apart: the table shows how far each is from float64. Both at no more than 128 rows.

The straightforward losses are in straightforward_loss.py. Takes 5 minutes, with --quick two.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from measuring import Goal, Spread, arguments, finish, interleaved, print_table, progress, spread
from straightforward_loss import straightforward_loss
from torch import Tensor

from tiekd_ros.method.losses import LossSettings
from tiekd_ros.method.objectives import make_objective
from tiekd_ros.student import KITTI_BINS, DepthBins, StudentOutput

STRAIGHTFORWARD, FUSED = "straightforward", "fused"
CHANNELS_FIRST = "straightforward, channels first"
FASTER, LEANER, AGREES = 3.0, 4.0, 1e-5  # what is promised at 352 x 704
MOST_ROWS = 128  # of maps that are compared in float64; the published loss crops 110
MIB = 2**20


class Size(NamedTuple):
    """Of a map, without its channels."""

    batch: int
    height: int
    width: int


class Case(NamedTuple):
    """One loss at one size."""

    objective: str
    size: Size
    bins: DepthBins
    is_promised: bool = False
    is_quick: bool = True

    @property
    def name(self) -> str:
        B, h, w = self.size
        return f"{self.objective} {B}x{self.bins.count}x{h}x{w}"


ROBOT_BINS = DepthBins()
CASES = (
    Case("paper", Size(1, 352, 704), KITTI_BINS, is_promised=True),
    Case("tiekd", Size(1, 352, 704), KITTI_BINS, is_promised=True),
    Case("paper", Size(2, 352, 704), KITTI_BINS, is_quick=False),
    Case("tiekd", Size(2, 352, 704), KITTI_BINS, is_quick=False),
    Case("paper", Size(4, 60, 80), KITTI_BINS),
    Case("tiekd", Size(4, 60, 80), ROBOT_BINS),
)


class Apart(NamedTuple):
    """Largest differences of loss and gradient, relative."""

    float64: float  # of the two ways
    straightforward: float  # of float32 from float64
    fused: float


class Row(NamedTuple):
    """What was measured of a case."""

    case: str
    ms: dict[str, Spread]
    mib: dict[str, float]
    faster: float
    leaner: float
    apart: Apart


def main(arguments_: list[str] | None = None) -> int:
    parser = arguments(__doc__ or "")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "WAY"), help="print one peak, bytes")
    options = parser.parse_args(arguments_)
    if options.memory:
        print(json.dumps(peak_memory(*options.memory)))
        return 0
    cases = [case for case in CASES if case.is_quick or not options.quick]
    rows = [measure(case, options.quick) for case in cases]
    show(rows)
    goals = [goal for case, row in zip(cases, rows, strict=True) for goal in goals_of(case, row)]
    finish("loss", options, {"loss": rows}, goals)
    return 0


def measure(case: Case, is_quick: bool) -> Row:
    """Measure both ways of one case."""
    large = case.size.height * case.size.width > 1e5
    logits, depth = make_input(case, case.size)
    calls = timed_ways(case, logits, depth)
    repeats = (5 if is_quick else 7) if large else (15 if is_quick else 50)
    apart = compare(case)  # warms up as well
    times = interleaved(calls, repeats=repeats, warm_up=0 if is_quick and large else 2)
    ms = {name: spread(values) for name, values in times.items()}
    with progress() as bar:
        bar.add_task(f"{case.name}: memory", total=None)
        mib = measure_memory(case)
    return Row(case.name, ms, mib, times_faster(ms), mib[STRAIGHTFORWARD] / mib[FUSED], apart)


def compare(case: Case) -> Apart:
    """Return how far losses and gradients of the two ways are apart, and from float64."""
    logits, depth = make_input(case, case.size._replace(height=min(case.size.height, MOST_ROWS)))
    single, double = (
        {name: loss_and_gradient(loss, logits.to(dtype), depth.to(dtype))
         for name, loss in ways(case).items()}
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    truth = double[STRAIGHTFORWARD]
    return Apart(
        difference(double[FUSED], truth),
        difference(single[STRAIGHTFORWARD], truth),
        difference(single[FUSED], truth),
    )


def loss_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, depth: Tensor
) -> tuple[float, Tensor]:
    logits = logits.detach().requires_grad_()
    total = loss(logits, depth)
    return total.item(), torch.autograd.grad(total, logits)[0]


def difference(found: tuple[float, Tensor], wanted: tuple[float, Tensor]) -> float:
    (value, gradient), (true_value, true_gradient) = found, wanted
    largest = (gradient - true_gradient).abs().max() / true_gradient.abs().max()
    return max(abs(value - true_value) / abs(true_value), float(largest))


def ways(case: Case) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Return both losses, (logits, depth) -> scalar."""
    settings = LossSettings(objective=case.objective)
    straightforward = straightforward_loss(case.bins, settings)
    objective = make_objective(case.bins, settings)

    def fused(logits: Tensor, depth: Tensor) -> Tensor:
        return objective(StudentOutput(logits, depth.new_empty), depth).total

    return {STRAIGHTFORWARD: lambda z, d: straightforward(z, d).total, FUSED: fused}


def timed_ways(case: Case, logits: Tensor, depth: Tensor) -> dict[str, Callable[[], object]]:
    """Return calls of forward and backward; on a CUDA device they wait for the result."""
    losses = ways(case)
    first = logits.detach().clone(memory_format=torch.contiguous_format).requires_grad_()

    def call(loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor) -> None:
        torch.autograd.grad(loss(inputs, depth), inputs)
        if inputs.is_cuda:
            torch.cuda.synchronize()

    return {
        STRAIGHTFORWARD: partial(call, losses[STRAIGHTFORWARD], logits),
        CHANNELS_FIRST: partial(call, losses[STRAIGHTFORWARD], first),
        FUSED: partial(call, losses[FUSED], logits),
    }


def times_faster(ms: Mapping[str, Spread]) -> float:
    """Return how many times faster the fused loss is than the faster straightforward one."""
    return min(ms[STRAIGHTFORWARD].median, ms[CHANNELS_FIRST].median) / ms[FUSED].median


def make_input(case: Case, size: Size) -> tuple[Tensor, Tensor]:
    """Return random logits (B, C, h, w) and a smooth depth (B, 1, h, w), a tenth unknown."""
    B, h, w = size
    torch.manual_seed(0)
    logits = torch.empty(B, case.bins.count, h, w, memory_format=torch.channels_last)
    logits.normal_(std=2.0)
    share = torch.nn.functional.interpolate(torch.rand(B, 1, 6, 8), (h, w), mode="bicubic")
    low, high = case.bins.min_depth_m, case.bins.max_depth_m
    depth = low + share.clamp(0, 1) * (high - low)
    depth[torch.rand(depth.shape) < 0.1] = torch.nan
    return logits.requires_grad_(), depth


def measure_memory(case: Case) -> dict[str, float]:
    """Return the peak of both ways in MiB, each measured in a process of its own."""
    command = [sys.executable, __file__, "--memory", case.name]
    children = {
        way: subprocess.Popen([*command, way], stdout=subprocess.PIPE, text=True)
        for way in (STRAIGHTFORWARD, FUSED)
    }
    found = {}
    for way, child in children.items():
        output, _ = child.communicate()
        if child.returncode:
            raise SystemExit(f"measuring the memory of {case.name}, {way}, failed: see above")
        found[way] = json.loads(output) / MIB
    return found


def peak_memory(name: str, way: str) -> int:
    """Return by how many bytes forward and backward raise the peak of resident memory."""
    case = next(case for case in CASES if case.name == name)
    loss = ways(case)[way]
    small, small_depth = make_input(case, Size(1, 8, 8))
    loss(small, small_depth).backward()  # what libraries set up once
    logits, depth = make_input(case, case.size)
    # Memory that was used before and freed must neither serve nor count.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
    before = _resident_peak()
    loss(logits, depth).backward()
    return _resident_peak() - before


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this system does not tell the peak of resident memory (VmHWM)")


def show(rows: list[Row]) -> None:
    ways_ = (STRAIGHTFORWARD, FUSED)
    timed = (STRAIGHTFORWARD, CHANNELS_FIRST, FUSED)
    print_table(
        "Forward and backward: ms, median (10th-90th percentile); memory beyond the logits, MiB",
        ("case", *(f"{w} ms" for w in timed), "n", "faster", *(f"{w} MiB" for w in ways_), "less",
         "apart (float64)", "float32 from float64"),
        [
            (r.case, *(r.ms[w] for w in timed), r.ms[FUSED].n, f"{r.faster:.1f} x",
             *(r.mib[w] for w in ways_), f"{r.leaner:.1f} x", f"{r.apart.float64:.0e}",
             f"{r.apart.straightforward:.0e}, {r.apart.fused:.0e}")
            for r in rows
        ],
    )  # fmt: skip


def goals_of(case: Case, row: Row) -> list[Goal]:
    apart = row.apart.float64
    same = Goal(f"{row.case}: agrees", f"<= {AGREES:.0e}", f"{apart:.0e}", apart <= AGREES)
    least = FASTER if case.is_promised else 1.0
    goals = [
        Goal(f"{row.case}: faster", f">= {least:.0f} x", f"{row.faster:.1f} x", row.faster >= least)
    ]
    if case.is_promised:
        met = row.leaner >= LEANER
        goals.append(
            Goal(f"{row.case}: less memory", f">= {LEANER:.0f} x", f"{row.leaner:.1f} x", met)
        )
    return [*goals, same]


if __name__ == "__main__":
    raise SystemExit(main())
