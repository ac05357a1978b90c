"""Fine-tuning a student within a budget of iterations and seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from tiekd_ros.distillation.losses import DistillationLoss, LossParts, LossSettings
from tiekd_ros.distillation.samples import AugmentSettings, Sample, augment, quarter_depth
from tiekd_ros.errors import TiekdError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.student import FastStudent, choose_device, normalise, to_channels_last

_BAD_STEPS_IN_A_ROW = 5


class TrainingError(TiekdError):
    """Training cannot go on; the network is as it was after its last good step."""


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Budget and recipe of one training run."""

    iterations: int = setting(300, "number of optimiser steps at most", minimum=1, maximum=10**7)
    seconds: float = setting(
        0.0, "training time at most; 0 = no limit", unit="s", minimum=0.0, maximum=1e7
    )
    batch_size: int = setting(4, "images per step", minimum=1, maximum=1024)
    learning_rate: float = setting(
        8e-3, "peak learning rate of a student trained from scratch", minimum=1e-7, maximum=1.0
    )
    fine_tune_rate: float = setting(
        2e-3, "peak learning rate of a student that has a parent", minimum=1e-7, maximum=1.0
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay", minimum=0.0, maximum=1.0)
    clip_norm: float = setting(10.0, "gradients are clipped to this norm", minimum=0.0, maximum=1e6)
    batch_norm: str = setting(
        "auto",
        "batch-norm statistics: of each batch, then averaged over the frames (batch), or kept as "
        "they are (frozen); auto = batch from scratch, frozen with a parent",
        choices=("auto", "batch", "frozen"),
    )
    threads: int = setting(
        0, "CPU threads of the training; 0 = half the cores", minimum=0, maximum=512
    )
    device: str = setting("auto", "device to train on: auto, cpu, cuda or cuda:N")
    seed: int = setting(0, "seed of shuffling and augmentation", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class Progress:
    """One step done."""

    step: int
    steps: int  # estimate, where the seconds run out first
    loss: float
    kl: float
    ssim: float
    seconds: float


@dataclass(frozen=True)
class TrainResult:
    """What a training run did."""

    steps: int
    skipped: int
    seconds: float
    first_loss: float
    last_loss: float


class Trainer:
    """Trains a network in place on samples held in memory."""

    def __init__(
        self,
        network: FastStudent,
        samples: Sequence[Sample],
        settings: TrainSettings,
        *,
        loss: LossSettings,
        augmentation: AugmentSettings,
        has_parent: bool,
    ) -> None:
        if not samples:
            raise TrainingError("there is no frame to train on")
        self.settings = settings
        self.device = choose_device(settings.device)
        self.network = network.to(self.device)
        to_channels_last(self.network)
        self._samples = samples
        self._augmentation = augmentation
        self._loss = DistillationLoss(network.bins, loss)
        self._rng = np.random.default_rng(settings.seed)
        self._peak = settings.fine_tune_rate if has_parent else settings.learning_rate
        auto = "frozen" if has_parent else "batch"
        self._frozen = (auto if settings.batch_norm == "auto" else settings.batch_norm) == "frozen"
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=self._peak, weight_decay=settings.weight_decay
        )
        if not has_parent:
            self._start_from_label_histogram()

    def run(self, report: Callable[[Progress], None]) -> TrainResult:
        """Train until the budget is spent.

        A step whose loss or gradient is not finite is skipped before anything is updated.

        Raises:
            TrainingError: several such steps in a row.
        """
        start = time.monotonic()
        losses: list[float] = []
        step, elapsed = 0, 0.0
        in_a_row = 0  # steps that were skipped
        while (done := self._share_done(step, elapsed)) < 1.0:
            parts = self._step(*self._draw_batch(), self._rate(done))
            step += 1
            elapsed = time.monotonic() - start
            if parts is None:
                in_a_row += 1
                self._check_sane(in_a_row, step)
                continue
            in_a_row = 0
            losses.append(parts.total.item())
            steps = self._expected_steps(step, elapsed)
            report(Progress(step, steps, losses[-1], parts.kl.item(), parts.ssim.item(), elapsed))
        if not losses:
            raise TrainingError("the budget ended before one step was done; give more seconds")
        if not self._frozen:
            self._average_batch_norms()
        self.network.eval()
        few = max(1, len(losses) // 20)
        first, last = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
        return TrainResult(step, step - len(losses), time.monotonic() - start, first, last)

    def _check_sane(self, in_a_row: int, step: int) -> None:
        if in_a_row >= _BAD_STEPS_IN_A_ROW:
            raise TrainingError(
                f"loss or gradient not finite in {in_a_row} steps in a row (step {step}); "
                "lower learning_rate, or look at the labels"
            )

    def _share_done(self, step: int, elapsed: float) -> float:
        by_steps = step / self.settings.iterations
        by_time = elapsed / self.settings.seconds if self.settings.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _expected_steps(self, step: int, elapsed: float) -> int:
        done = self._share_done(step, elapsed)
        return max(step, min(self.settings.iterations, round(step / done)))

    def _rate(self, done: float) -> float:
        """One cycle (Smith 2018): up for a tenth of the budget, then down along a cosine."""
        warm_up = 0.1
        if done < warm_up:
            return self._peak * (0.1 + 0.9 * done / warm_up)
        falling = (done - warm_up) / (1 - warm_up)
        return self._peak * max(0.5 * (1 + math.cos(math.pi * falling)), 1e-3)

    def _draw_batch(self) -> tuple[Tensor, Tensor]:
        chosen = self._rng.integers(len(self._samples), size=self.settings.batch_size)
        drawn = [augment(self._samples[i], self._augmentation, self._rng) for i in chosen]
        return self._tensors(drawn)

    def _tensors(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.stack([s.image for s in samples])).to(self.device)
        depth = torch.from_numpy(np.stack([s.depth for s in samples])).to(self.device)
        return normalise(images), quarter_depth(depth[:, None])

    def _step(self, images: Tensor, depth: Tensor, rate: float) -> LossParts | None:
        """Do one optimiser step, or nothing where loss or gradient is not finite."""
        self.network.train()
        if self._frozen:
            _freeze_batch_norms(self.network)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.zero_grad(set_to_none=True)
        parts = self._loss(self.network(images), depth)
        if not bool(torch.isfinite(parts.total)):
            return None
        parts.total.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        if not bool(torch.isfinite(norm)):
            return None
        self._optimizer.step()
        return LossParts(*(part.detach() for part in parts))

    def _start_from_label_histogram(self) -> None:
        """Set the head's bias so that the first answer is the labels' own distribution."""
        bins = self.network.bins
        depths = np.concatenate([s.depth[np.isfinite(s.depth)][::16] for s in self._samples])
        edges = bins.edges().numpy()
        counts, _ = np.histogram(depths, bins=edges)
        smooth = (counts + 1e-3 * max(counts.sum(), 1)) / (counts.sum() + 1e-9)
        bias = self.network.head.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(torch.from_numpy(np.log(smooth + 1e-9)))

    @torch.no_grad()
    def _average_batch_norms(self) -> None:
        """Replace the running statistics by their average over the training frames.

        Batches are small here, so an exponential average would remember the last few only.
        """
        norms = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
        self.network.train()
        size = max(self.settings.batch_size, 8)
        some = [self._samples[i] for i in self._rng.permutation(len(self._samples))[: 16 * size]]
        for first in range(0, len(some), size):
            self.network(self._tensors(some[first : first + size])[0])
        for norm in norms:
            norm.momentum = 0.1


def _freeze_batch_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
