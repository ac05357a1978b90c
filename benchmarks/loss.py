"""The fused loss against the same formulas in plain tensor code: time, memory, agreement.

Both compute the loss and its gradient from the logits of a depth probability map (DPM), B x 257
x h x w, in the memory format that training uses (channels last): the published loss (`paper`)
and the corrected one (`tiekd`), at the size of the published KITTI training (352 x 704) and at
the size at which a robot trains (a quarter of 240 x 320).

Time is that of forward and backward, in turn. The straightforward loss is timed on the same logits
channels first as well, and the fused one is judged by the faster of the two. Memory is what the
peak of the process's resident memory grows by from before the forward pass, with the logits
already there, to after the backward pass (VmHWM in /proc/self/status), each in a process of its
own, or, on a CUDA device, the device's memory; that contains the gradient of the logits, which
both have to give. Agreement is the difference
of the loss, relative, or of the gradient, relative to the largest gradient, whichever is more, in
float64. In float32 the rounding inside SSIM, which both share, is larger than what sets them
apart: the table shows how far each is from float64. Both at no more than 128 rows.

The straightforward losses are in straightforward_loss.py. Takes 5 minutes, with --quick two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from harness import (
    Goal,
    Report,
    Row,
    Spread,
    cuda_peak_mib,
    in_own_process,
    interleaved,
    parser,
    peak_mib,
    progress,
    run,
    spread,
)
from straightforward_loss import straightforward_loss
from torch import Tensor

from tiekd_ros.method.losses import LossSettings, make_objective
from tiekd_ros.student.architecture import StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.official import KITTI_BINS

STRAIGHTFORWARD, FUSED = "straightforward", "fused"
CHANNELS_FIRST = "straightforward, channels first"
FASTER, LEANER, AGREES = 3.0, 4.0, 1e-5  # what is promised at 352 x 704
MOST_ROWS = 128  # of maps that are compared in float64; the published loss crops 110


class Case(NamedTuple):
    """One loss at one size."""

    objective: str
    size: tuple[int, int, int]  # batch, height, width
    bins: DepthBins = KITTI_BINS
    is_promised: bool = False
    is_quick: bool = True

    @property
    def name(self) -> str:
        B, h, w = self.size
        return f"{self.objective} {B}x{self.bins.count}x{h}x{w}"


CASES = (
    Case("paper", (1, 352, 704), is_promised=True),
    Case("tiekd", (1, 352, 704), is_promised=True),
    Case("paper", (2, 352, 704), is_quick=False),
    Case("tiekd", (2, 352, 704), is_quick=False),
    Case("paper", (4, 60, 80)),
    Case("tiekd", (4, 60, 80), DepthBins()),
)


def main(argv: list[str] | None = None) -> int:
    made = parser(__doc__ or "")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="[cpu]")
    made.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="[all]")
    options = made.parse_args(argv)
    report = Report("loss", options)
    cases = [
        case
        for case in CASES
        if (case.name in options.cases if options.cases else case.is_quick or not options.quick)
    ]
    rows = [measure(case, options.quick, options.device) for case in cases]
    title = "Forward and backward: ms, median (10th-90th percentile); memory beyond the logits, MiB"
    report.table("loss", title, rows)
    for case, row in zip(cases, rows, strict=True):
        report.goals += goals_of(case, row)
    return report.finish()


def measure(case: Case, is_quick: bool, device: str) -> Row:
    """Measure both ways of one case."""
    large = case.size[1] * case.size[2] > 1e5
    calls = timed_ways(case, *make_input(case, case.size, device))
    repeats = (5 if is_quick else 7) if large else (15 if is_quick else 50)
    apart = compare(case, device)  # warms up as well
    times = interleaved(calls, repeats=repeats, warm_up=0 if is_quick and large else 2)
    ms = {name: spread(values) for name, values in times.items()}
    with progress() as bar:
        bar.add_task(f"{case.name}: memory", total=None)
        mib = {
            way: in_own_process(memory_of, case, way)
            if device == "cpu"
            else cuda_peak_mib(calls[way])
            for way in (STRAIGHTFORWARD, FUSED)
        }
    return {
        "case": case.name,
        **{f"{way} ms": found for way, found in ms.items()},
        "n": ms[FUSED].n,
        "faster": times_faster(ms),
        **{f"{way} MiB": found for way, found in mib.items()},
        "less": mib[STRAIGHTFORWARD] / max(mib[FUSED], 1e-9),
        **apart,
    }


def compare(case: Case, device: str) -> Row:
    """Return how far losses and gradients of the two ways are apart, and from float64."""
    B, h, w = case.size
    logits, depth = make_input(case, (B, min(h, MOST_ROWS), w), device)
    single, double = (
        {name: loss_and_gradient(loss, logits.to(dtype), depth.to(dtype))
         for name, loss in ways(case).items()}
        for dtype in (torch.float32, torch.float64)
    )  # fmt: skip
    truth = double[STRAIGHTFORWARD]
    apart = [difference(single[way], truth) for way in (STRAIGHTFORWARD, FUSED)]
    return {
        "apart (float64)": difference(double[FUSED], truth),
        "float32 from float64": f"{apart[0]:.0e}, {apart[1]:.0e}",
    }


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


def make_input(case: Case, size: tuple[int, int, int], device: str) -> tuple[Tensor, Tensor]:
    """Return random logits (B, C, h, w) and a smooth depth (B, 1, h, w), a tenth unknown."""
    B, h, w = size
    torch.manual_seed(0)
    logits = torch.empty(B, case.bins.count, h, w, memory_format=torch.channels_last)
    logits.normal_(std=2.0)
    share = torch.nn.functional.interpolate(torch.rand(B, 1, 6, 8), (h, w), mode="bicubic")
    low, high = case.bins.min_depth_m, case.bins.max_depth_m
    depth = low + share.clamp(0, 1) * (high - low)
    depth[torch.rand(depth.shape) < 0.1] = torch.nan
    return logits.to(device).requires_grad_(), depth.to(device)


def memory_of(case: Case, way: str) -> float:
    """Return by how many MiB forward and backward raise this process's peak memory."""
    loss = ways(case)[way]
    small, small_depth = make_input(case, (1, 8, 8), "cpu")
    loss(small, small_depth).backward()  # what libraries set up once
    logits, depth = make_input(case, case.size, "cpu")
    return peak_mib(lambda: loss(logits, depth).backward())


def goals_of(case: Case, row: Row) -> list[Goal]:
    name, least = case.name, FASTER if case.is_promised else 1.0
    goals = [Goal.at_least(f"{name}: faster", row["faster"], least)]
    if case.is_promised:
        goals.append(Goal.at_least(f"{name}: less memory", row["less"], LEANER))
    return [*goals, Goal.at_most(f"{name}: agrees", row["apart (float64)"], AGREES, "")]


if __name__ == "__main__":
    run(main)
