"""Measure on a CUDA device: networks, the loss, the node, training beside it.

    python benchmarks/gpu.py

The networks of student.py with the runtime that the node uses on a GPU (CUDA graphs), the losses
of loss.py, then node.py with `--device cuda --quick`, with and without --quick. distill.py is not
part of it. Where there is no CUDA device, it says so and ends well: its goals are then not
measured.

Columns are those of student.py; `net` is taken between two events of the device, and `MiB` is
the device's memory at its peak from before the start of the network, weights included, to the
end of a frame. A CUDA graph takes its memory when it is captured, at the start, so the start
counts for all, with what it needs for a while.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from depth_anything import missing_package, working_size
from gpu_loss import measure_losses
from measuring import Goal, arguments, console, finish, print_table
from run_all import named
from run_all import run as run_script
from student import COLUMNS, make_rows, robot_size, time_cases
from student_cases import (
    DEPTH_ANYTHING,
    EAGER_LAST,
    IMAGE,
    OURS,
    PUBLISHED,
    TORCH,
    Case,
    Run,
    camera_image,
)

CUDA = "cuda"
_NODE = ("--device", CUDA, "--quick")
_NETWORK_MS = 1.0
_NETWORK_GOAL = Goal("network p50, 480x640", f"<= {_NETWORK_MS:g} ms", "-", None)


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write; 1 where node.py broke."""
    options = read_options(argv)
    screen = console()
    if not torch.cuda.is_available():
        note = f"torch {torch.__version__} sees no CUDA device"
        screen.print(f"{note}: nothing to measure")
        finish("gpu", options, {}, [_NETWORK_GOAL._replace(note=note)])
        return 0
    tables, goals = measure_networks(quick=options.quick)
    tables["loss"], of_losses = measure_losses(CUDA, quick=options.quick)
    screen.rule("node.py")
    # Into a folder of its own, beside the results of the same script on the CPU.
    node = run_script(Path(__file__).with_name("node.py"), options.output / "gpu", *_NODE)
    tables["node"] = {"seconds": node.seconds, "problem": node.problem or None}
    finish("gpu", options, tables, [*goals, *of_losses, *named(node)])
    return 1 if node.problem else 0


def read_options(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    return arguments(__doc__ or "").parse_args(argv)


def choose_cases() -> list[Case]:
    """Return what is compared; all of it answers a 640x480 image."""
    cases = [
        Case(network, runtime, *size, device=CUDA)
        for size in (IMAGE, robot_size())
        for network, runtime in ((OURS, TORCH), (OURS, EAGER_LAST), (PUBLISHED, TORCH))
    ]
    if problem := missing_package():
        console().print(f"left out: {problem}")
        return cases
    return [*cases, Case(DEPTH_ANYTHING, TORCH, *working_size(*IMAGE), device=CUDA)]


def measure_networks(*, quick: bool) -> tuple[dict[str, object], list[Goal]]:
    """Return tables and the network's goal."""
    runs: dict[Case, Run] = {}
    memory: dict[Case, float] = {}
    for case in choose_cases():
        runs[case], memory[case] = start_and_weigh(case)
    rows = make_rows(time_cases(runs, quick=quick), memory, math.nan)
    print_table(torch.cuda.get_device_name(), COLUMNS, [row.cells() for row in rows])
    return {"networks": rows}, [judge_network(rows[0].network_ms)]  # ours at 480x640


def judge_network(p50: float | None) -> Goal:
    """Return the network's goal; not measured where its milliseconds are not known."""
    if p50 is None or math.isnan(p50):
        return _NETWORK_GOAL
    return _NETWORK_GOAL._replace(measured=f"{p50:.2f} ms", met=p50 <= _NETWORK_MS)


def start_and_weigh(case: Case) -> tuple[Run, float]:
    """Start a case; return it and the device's memory in MiB at the peak of start and frame."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run = case.start()
    run(camera_image())
    return run, (torch.cuda.max_memory_allocated() - before) / 2**20


if __name__ == "__main__":
    sys.exit(main())
