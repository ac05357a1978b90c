"""Fine-tuning a student within a budget of iterations and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.distillation.batch_norms import average_batch_norms
from tiekd_ros.distillation.losses import LossParts, LossSettings
from tiekd_ros.distillation.objectives import make_objective
from tiekd_ros.distillation.samples import AugmentSettings, Sample, augment, cell_depth
from tiekd_ros.distillation.stepping import (
    BadSteps,
    Stepper,
    TrainingError,
    warm_up_then_cosine,
)
from tiekd_ros.images import DepthMap
from tiekd_ros.settings import Settings, setting
from tiekd_ros.student import StudentNetwork, choose_device, normalise, to_channels_last


@dataclass(frozen=True)
class TrainSettings(Settings):
    """Budget and recipe of one training run."""

    iterations: int = setting(300, "number of optimiser steps at most", minimum=1, maximum=10**7)
    seconds: float = setting(
        0.0, "training time at most; 0 = no limit", unit="s", minimum=0.0, maximum=1e7
    )
    batch_size: int = setting(4, "images per step", minimum=1, maximum=1024)
    learning_rate: float = setting(
        8e-3, "peak learning rate from random weights", minimum=1e-7, maximum=1.0
    )
    fine_tune_rate: float = setting(
        2e-3,
        "peak learning rate from a parent or the base student",
        minimum=1e-7,
        maximum=1.0,
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay", minimum=0.0, maximum=1.0)
    clip_norm: float = setting(10.0, "gradients are clipped to this norm", minimum=0.0, maximum=1e6)
    batch_norm: str = setting(
        "auto",
        "batch-norm statistics: of each batch, then averaged over the frames (batch), or kept as "
        "they are (frozen); auto = batch from random weights, frozen from a parent or the base",
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
    """Trains a network in place on samples held in memory.

    Args:
        network: what is trained.
        samples: what it is trained on.
        settings: budget and recipe.
        loss: what it learns.
        augmentation: how the samples are varied.
        has_parent: whether it starts from trained weights: an earlier student's, or the base's.
            If not, its head starts from the histogram of the labels.
    """

    def __init__(
        self,
        network: StudentNetwork,
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
        self._rng = np.random.default_rng(settings.seed)
        self._peak = settings.fine_tune_rate if has_parent else settings.learning_rate
        auto = "frozen" if has_parent else "batch"
        self._frozen = (auto if settings.batch_norm == "auto" else settings.batch_norm) == "frozen"
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=self._peak, weight_decay=settings.weight_decay
        )
        self._objective = make_objective(network.bins, loss, has_dpm=network.has_dpm)
        self._stepper = Stepper(
            self.network,
            optimizer,
            self._loss,
            clip_norm=settings.clip_norm,
            frozen=self._frozen,
        )
        if not has_parent:
            start_from_label_histogram(network, [s.depth for s in samples])

    def run(self, report: Callable[[Progress], None]) -> TrainResult:
        """Train until the budget is spent.

        A step whose loss or gradient is not finite is skipped before anything is updated.

        Raises:
            TrainingError: several such steps in a row.
        """
        start = time.monotonic()
        losses: list[float] = []
        step, elapsed = 0, 0.0
        bad = BadSteps()
        while (done := self._share_done(step, elapsed)) < 1.0:
            rate = warm_up_then_cosine(self._peak, done)
            did = self._stepper.step(*self._draw_batch(), rate)
            step += 1
            elapsed = time.monotonic() - start
            if did is None:
                bad.bad(step)
                continue
            bad.good()
            parts = did.parts
            losses.append(parts.total.item())
            steps = self._expected_steps(step, elapsed)
            report(Progress(step, steps, losses[-1], parts.kl.item(), parts.ssim.item(), elapsed))
        if not losses:
            raise TrainingError("the budget ended before one step was done; give more seconds")
        if not self._frozen:
            average_batch_norms(self.network, self._some_batches())
        self.network.eval()
        few = max(1, len(losses) // 20)
        first, last = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
        return TrainResult(step, bad.total, time.monotonic() - start, first, last)

    def _loss(self, raw: Tensor, depth: Tensor) -> LossParts:
        return self._objective(self.network.output(raw), depth)

    def _share_done(self, step: int, elapsed: float) -> float:
        by_steps = step / self.settings.iterations
        by_time = elapsed / self.settings.seconds if self.settings.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _expected_steps(self, step: int, elapsed: float) -> int:
        done = self._share_done(step, elapsed)
        return max(step, min(self.settings.iterations, round(step / done)))

    def _draw_batch(self) -> tuple[Tensor, Tensor]:
        chosen = self._rng.integers(len(self._samples), size=self.settings.batch_size)
        drawn = [augment(self._samples[i], self._augmentation, self._rng) for i in chosen]
        return self._tensors(drawn)

    def _tensors(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.stack([s.image for s in samples])).to(self.device)
        depth = torch.from_numpy(np.stack([s.depth for s in samples])).to(self.device)
        return normalise(images), cell_depth(depth[:, None], self.network.output_scale)

    def _some_batches(self) -> Iterator[Tensor]:
        size = max(self.settings.batch_size, 8)
        some = [self._samples[i] for i in self._rng.permutation(len(self._samples))[: 16 * size]]
        for first in range(0, len(some), size):
            yield self._tensors(some[first : first + size])[0]


def start_from_label_histogram(network: StudentNetwork, depths: Sequence[DepthMap]) -> None:
    """Set the head's bias so that the first answer is the labels' own distribution."""
    known = np.concatenate([depth[np.isfinite(depth)][::16] for depth in depths])
    counts, _ = np.histogram(known, bins=network.bins.edges().numpy())
    smooth = (counts + 1e-3 * max(counts.sum(), 1)) / (counts.sum() + 1e-9)
    network.start_from_histogram(torch.from_numpy(smooth))
