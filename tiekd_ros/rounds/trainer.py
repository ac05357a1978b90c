"""Fine-tuning a student within a budget of iterations and seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.first_student import start_from_label_histogram
from tiekd_ros.method.losses import LossParts, LossSettings, make_objective
from tiekd_ros.method.outliers import OUTLIER_FACTOR, outliers
from tiekd_ros.method.samples import AugmentSettings, Sample, augment, cell_depth
from tiekd_ros.method.stepping import (
    BadSteps,
    Stepper,
    TrainingError,
    average_batch_norms,
    make_optimizer,
    warm_up_then_cosine,
)
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import to_channels_last


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
        4e-3, "peak learning rate from a parent or the base student", minimum=1e-7, maximum=1.0
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay", minimum=0.0, maximum=1.0)
    outlier_factor: float = setting(
        OUTLIER_FACTOR,
        "a label that disagrees with the student by so many times as much as those around it in "
        "time is left out, at the start and anew at half of the steps; 0 = none is",
        minimum=0.0,
        maximum=1e6,
    )
    clip_norm: float = setting(10.0, "gradients are clipped to this norm", minimum=0.0, maximum=1e6)
    batch_norm: str = setting(
        "auto",
        "batch-norm statistics: of each batch, then averaged over the frames (batch), or kept as "
        "they are (frozen); auto = batch, but an encoder that was trained before keeps its own",
        choices=("auto", "batch", "frozen"),
    )
    threads: int = setting(
        0,
        "CPU threads of the training; 0 = half the cores, all where no student is live yet",
        minimum=0,
        maximum=512,
    )
    device: str = setting("auto", "device to train on: auto, cpu, cuda or cuda:N")
    seed: int = setting(0, "seed of shuffling and augmentation", minimum=0, maximum=2**31 - 1)

    def check(self) -> None:
        """Refuse a factor that would leave out usual labels."""
        if 0 < self.outlier_factor <= 1:
            raise InvalidSettingError(
                f"outlier_factor {self.outlier_factor:g} would leave out half of the labels; take "
                "one above 1, or 0 to leave out none"
            )


_SCORED_AT_A_TIME = 8  # frames

Pause = Callable[[], float]
"""Called between steps: blocks while training is paused; returns the seconds that it did."""


def no_pause() -> float:
    """Never pause."""
    return 0.0


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
    outliers: int = 0
    """Labels that were left out in the end."""


class Trainer:
    """Trains a network in place on samples held in memory.

    Args:
        network: what is trained.
        samples: what it is trained on, in the order of time.
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
        self._chosen = np.arange(len(samples))  # what batches are drawn from
        self._has_parent = has_parent
        self._augmentation = augmentation
        self._rng = np.random.default_rng(settings.seed)
        self._peak = settings.fine_tune_rate if has_parent else settings.learning_rate
        frozen: nn.Module | None = None
        if settings.batch_norm == "frozen":
            frozen = self.network
        elif settings.batch_norm == "auto" and has_parent:
            frozen = self.network.get_submodule("backbone")
        optimizer = make_optimizer(network, self._peak, settings.weight_decay)
        self._objective = make_objective(network.bins, loss, has_dpm=network.has_dpm)
        clip = settings.clip_norm
        self._stepper = Stepper(self.network, optimizer, self._loss, clip_norm=clip, frozen=frozen)
        if not has_parent:
            start_from_label_histogram(network, [s.depth for s in samples])

    def run(self, report: Callable[[Progress], None], pause: Pause = no_pause) -> TrainResult:
        """Train until the budget is spent.

        A step whose loss or gradient is not finite is skipped before anything is updated.

        Args:
            report: called after each step.
            pause: called between steps; the seconds that it says it blocked do not count.

        Raises:
            TrainingError: several such steps in a row.
        """
        start = time.monotonic()
        losses: list[float] = []
        step, elapsed, paused_s = 0, 0.0, 0.0
        bad = BadSteps()
        looks_at = [0.0, 0.5] if self._has_parent else [0.5]  # shares of the budget
        while (done := self._share_done(step, elapsed)) < 1.0:
            paused_s += pause()
            if looks_at and done >= looks_at[0] and self.settings.outlier_factor > 0:
                looks_at.pop(0)
                paused_s += self._leave_out_outliers(pause)
            did = self._stepper.step(*self._draw_batch(), warm_up_then_cosine(self._peak, done))
            step += 1
            elapsed = time.monotonic() - start - paused_s
            if did is None:
                bad.bad(step)
                continue
            bad.good()
            loss, kl, ssim = (part.item() for part in did.parts)
            losses.append(loss)
            steps = self._expected_steps(step, elapsed)
            report(Progress(step, steps, loss, kl, ssim, elapsed))
        if not losses:
            raise TrainingError("the budget ended before one step was done; give more seconds")
        if self._stepper.frozen is not self.network:
            average_batch_norms(self.network, self._some_batches(), self._stepper.frozen)
        self.network.eval()
        few = max(1, len(losses) // 20)
        first, last = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
        seconds = time.monotonic() - start - paused_s
        left_out = len(self._samples) - len(self._chosen)
        return TrainResult(step, bad.total, seconds, first, last, left_out)

    @torch.no_grad()
    def _leave_out_outliers(self, pause: Pause) -> float:
        """Draw no more from labels that disagree far more than those around them.

        Returns:
            The seconds that `pause` blocked.
        """
        self.network.eval()
        bins = self.network.bins
        errors: list[float] = []
        paused_s = 0.0
        for first in range(0, len(self._samples), _SCORED_AT_A_TIME):
            paused_s += pause()
            images, depth = self._tensors(self._samples[first : first + _SCORED_AT_A_TIME])
            student = self.network.output(self.network(images)).depth
            label = cell_depth(depth, depth.shape[2] // student.shape[2])
            inside = (label > bins.min_depth_m) & (label < bins.max_depth_m)  # not NaN
            differs = torch.where(inside, (student / label).log().abs(), torch.nan)
            errors += differs.flatten(1).nanmean(dim=1).tolist()
        self._chosen = np.flatnonzero(~outliers(errors, self.settings.outlier_factor))
        return paused_s

    def _loss(self, raw: Any, depth: Tensor) -> LossParts:
        return self._objective(self.network.output(raw), depth)

    def _share_done(self, step: int, elapsed: float) -> float:
        by_steps = step / self.settings.iterations
        by_time = elapsed / self.settings.seconds if self.settings.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _expected_steps(self, step: int, elapsed: float) -> int:
        done = self._share_done(step, elapsed)
        return max(step, min(self.settings.iterations, round(step / done)))

    def _draw_batch(self) -> tuple[Tensor, Tensor]:
        chosen = self._rng.choice(self._chosen, size=self.settings.batch_size)
        return self._tensors(
            [augment(self._samples[i], self._augmentation, self._rng) for i in chosen]
        )

    def _tensors(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.stack([s.image for s in samples])).to(self.device)
        depth = torch.from_numpy(np.stack([s.depth for s in samples])).to(self.device)
        return normalise(images), depth[:, None]

    def _some_batches(self) -> Iterator[Tensor]:
        size = max(self.settings.batch_size, 8)
        some = [self._samples[i] for i in self._rng.permutation(len(self._samples))[: 16 * size]]
        for first in range(0, len(some), size):
            yield self._tensors(some[first : first + size])[0]
