"""The two ways of loss.py on a CUDA device: time, memory, agreement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from loss import (
    AGREES,
    CASES,
    FASTER,
    FUSED,
    LEANER,
    STRAIGHTFORWARD,
    Case,
    difference,
    loss_and_gradient,
    make_input,
    timed_ways,
    times_faster,
    ways,
)
from measuring import Goal, interleaved, print_table, spread

_COLUMNS = ("loss", "way", "ms", "peak MiB")
_REPEATS = 20


def measure_losses(device: str, *, quick: bool) -> tuple[list[object], list[Goal]]:
    """Print and return what both ways take; the goals at the promised size."""
    rows: list[object] = []
    cells: list[tuple[object, ...]] = []
    goals: list[Goal] = []
    for case in CASES:
        if quick and not case.is_quick:
            continue
        logits, depth = (
            part.detach().to(device).requires_grad_(part.requires_grad)
            for part in make_input(case, case.size)
        )
        losses = ways(case)
        calls = timed_ways(case, logits, depth)
        times = interleaved(calls, repeats=_REPEATS, warm_up=3)
        ms = {way: spread(values) for way, values in times.items()}
        mib = {way: peak_mib(call, device) for way, call in calls.items()}
        first, second = (loss_and_gradient(loss, logits, depth) for loss in losses.values())
        rows.append({"loss": case.name, "ms": ms, "peak_mib": mib})
        cells += [(case.name, way, ms[way], mib[way]) for way in ms]
        if case.is_promised:
            leaner = mib[STRAIGHTFORWARD] / max(mib[FUSED], 1e-9)
            goals += goals_of(case, times_faster(ms), leaner, difference(second, first))
    print_table("Loss, forward and backward", _COLUMNS, cells)
    return rows, goals


def goals_of(case: Case, faster: float, leaner: float, apart: float) -> list[Goal]:
    """Return the promises for one loss."""
    name = case.name
    return [
        Goal(f"{name}: faster", f">= {FASTER:g} x", f"{faster:.1f} x", faster >= FASTER),
        Goal(f"{name}: less memory", f">= {LEANER:g} x", f"{leaner:.1f} x", leaner >= LEANER),
        Goal(f"{name}: agrees", f"<= {AGREES:.0e}", f"{apart:.0e}", apart <= AGREES),
    ]


def peak_mib(call: Callable[[], object], device: str) -> float:
    """Return by how many MiB a call raises the device's memory; 0 on a CPU, not measured."""
    if torch.device(device).type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20
