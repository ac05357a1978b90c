"""Draw the figures of docs/method.md: how the corrected method differs from the published code.

    pip install '.[student,docs]'
    python benchmarks/method_figures.py            writes docs/method/*.png

Every curve is computed by the code that trains students, none is drawn from memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

from tiekd_ros.method.losses import masked_ssim
from tiekd_ros.method.paper.losses import published_ssim
from tiekd_ros.method.paper.target import PublishedTarget
from tiekd_ros.method.target import DepthTarget
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth

mpl.use("Agg")
from matplotlib import pyplot as plt

NYU = DepthBins(49, 1e-3, 10.0)
KITTI = DepthBins(257, 1e-3, 80.0)
OURS = DepthBins()
PAPER = {"color": "tab:red", "label": "paper"}
TIEKD = {"color": "tab:blue", "label": "tiekd"}
SCALE = 1 / (OURS.max_depth_m - OURS.min_depth_m)

Target = PublishedTarget | DepthTarget


def both(bins: DepthBins) -> list[tuple[Target, dict[str, str]]]:
    """Return the published and the corrected target, each with the style of its curve."""
    return [(PublishedTarget(bins), PAPER), (DepthTarget(bins, TargetWidth()), TIEKD)]


def distribution(target: Target, depths: Tensor) -> Tensor:
    """Return the target's probabilities (N, C) at depths (N,) in metres."""
    return target.probabilities(depths.view(-1, 1, 1, 1))[:, :, 0, 0]


def spread(target: Target, depths: Tensor) -> tuple[Tensor, Tensor]:
    """Return expectation and standard deviation (N,) in metres at depths (N,)."""
    p = distribution(target, depths).double()
    centres = target.bins.centres().double()
    mean = p @ centres
    return mean, (p * (centres - mean[:, None]) ** 2).sum(1).sqrt()


def draw_shape() -> plt.Figure:
    """Draw what a student has to learn for a pixel 1 m and one 4 m away."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    for axis, depth in zip(axes, (1.0, 4.0), strict=True):
        for target, style in both(OURS):
            axis.plot(OURS.centres(), distribution(target, torch.tensor([depth]))[0], **style)
        axis.axvline(depth, color="black", linewidth=0.8, linestyle=":", label="teacher")
        axis.set(xlabel="depth of the bin [m]", title=f"teacher says {depth:g} m")
    axes[0].set_ylabel("probability of a bin")
    axes[0].legend()
    return figure


def draw_bias() -> plt.Figure:
    """Draw how far the target's own expectation is from the teacher's depth."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8))
    for axis, bins, name in ((axes[0], KITTI, "KITTI bins"), (axes[1], NYU, "NYU bins")):
        depths = torch.linspace(float(bins.centres()[0]), bins.max_depth_m, 1200)
        for target, style in both(bins):
            axis.plot(depths, spread(target, depths)[0] - depths, **style)
        axis.set(xlabel="teacher depth [m]", ylabel="expectation - teacher [m]", title=name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    return figure


def draw_sigma() -> plt.Figure:
    """Draw the spread of the target: what sharpness the student is asked for."""
    figure, axis = plt.subplots(figsize=(5, 3))
    depths = torch.linspace(0.3, 9.9, 600)
    for sigma, line in ((0.5, "-"), (0.15, "--")):
        std = spread(PublishedTarget(OURS, sigma), depths)[1]
        axis.plot(depths, std, line, **{**PAPER, "label": f"paper, sigma {sigma} m"})
    for width, line in ((TargetWidth(), "-"), (TargetWidth(0.1, 0.0), "--")):
        std = spread(DepthTarget(OURS, width), depths)[1]
        label = f"tiekd, max({width.floor_m} m, {width.relative} d)"
        axis.plot(depths, std, line, **{**TIEKD, "label": label})
    axis.set(
        xlabel="teacher depth [m]", ylabel="standard deviation of the target [m]", yscale="log"
    )
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def draw_ssim() -> plt.Figure:
    """Draw similarity against how much of a student's relief has the teacher's sign."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), sharey=True)
    y, x = np.mgrid[0:48, 0:64]
    relief = torch.tensor(np.sin(x / 3.0) * np.cos(y / 4.0)).float()[None, None]
    valid = torch.ones_like(relief, dtype=torch.bool)
    shares = torch.linspace(-1, 1, 81)
    for axis, height in zip(axes, (0.05, 0.5), strict=True):
        teacher = 4 + height * relief
        students = [4 + float(share) * height * relief for share in shares]
        paper = [float(published_ssim(s, teacher)) for s in students]
        ours = [float(masked_ssim(s * SCALE, teacher * SCALE, valid)) for s in students]
        axis.plot(shares, paper, **PAPER)
        axis.plot(shares, ours, **TIEKD)
        axis.set(
            xlabel="student's relief / teacher's", title=f"relief of {100 * height:g} cm at 4 m"
        )
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("SSIM")
    axes[0].legend()
    return figure


def draw_masks() -> plt.Figure:
    """Draw the gradient of the depth term around a hole in the teacher's depth."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 2.6))
    y, x = np.mgrid[0:48, 0:64]
    teacher = torch.tensor(3 + 0.02 * x + 0.01 * y).float()[None, None]
    teacher[:, :, 16:32, 24:44] = torch.nan
    students = [(teacher.nan_to_num(3.5) * 1.03).requires_grad_() for _ in axes]
    losses = {
        "paper: unknown is 0 m": 1 - published_ssim(students[0], teacher.nan_to_num(0.0)),
        "tiekd: unknown is left out": 1
        - masked_ssim(students[1] * SCALE, teacher * SCALE, teacher.isfinite()),
    }
    for axis, student, (name, loss) in zip(axes, students, losses.items(), strict=True):
        (pull,) = torch.autograd.grad(loss, student)
        pull = pull[0, 0].abs()
        axis.imshow(pull / pull.max(), cmap="magma")
        axis.set(title=name, xticks=[], yticks=[])
    return figure


def draw_bins() -> plt.Figure:
    """Draw the width of a bin relative to its depth."""
    figure, axis = plt.subplots(figsize=(5, 3))
    for bins, line, style, label in (
        (KITTI, "-", PAPER, "uniform, 257 to 80 m (paper, KITTI)"),
        (NYU, "--", PAPER, "uniform, 49 to 10 m (paper, NYU)"),
        (OURS, "-", TIEKD, "uniform, 257 to 10 m"),
        (DepthBins(spacing="log"), "--", TIEKD, "log, 257 to 10 m"),
    ):
        centres = bins.centres()
        widths = 100 * bins.edges().diff() / centres
        near = (centres > 0.15) & (centres < 10)
        axis.plot(centres[near], widths[near], line, **{**style, "label": label})
    axis.set(xlabel="depth [m]", ylabel="width of a bin [% of depth]", xscale="log", yscale="log")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> None:
    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
    parser.add_argument("--output", type=Path, default=Path("docs/method"))
    folder = parser.parse_args(argv).output
    folder.mkdir(parents=True, exist_ok=True)
    for draw in (draw_shape, draw_bias, draw_sigma, draw_ssim, draw_masks, draw_bins):
        figure, path = draw(), folder / f"{draw.__name__.removeprefix('draw_')}.png"
        figure.tight_layout()
        figure.savefig(path, dpi=100)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
