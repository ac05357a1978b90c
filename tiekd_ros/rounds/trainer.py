"""Fine-tuning a student within a budget of iterations and seconds.

From trained weights, most of what a new place asks for can be learnt behind the backbone.
While the backbone is frozen, no gradient flows through it, nor is anything kept for one, which
is the larger part of a step. What it cannot give shows in frames that are not trained on: once
their loss falls no more, the backbone is trained as well.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from tiekd_ros.core import Closing
from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.first_student import start_from_label_histogram
from tiekd_ros.method.losses import LossParts, LossSettings, make_objective
from tiekd_ros.method.samples import AugmentSettings, Sample, augment
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

_T = TypeVar("_T")

_LOOK_EVERY = 0.05  # of the budget
_HELD_BACK, _MOST_HELD_BACK = 8, 8  # one frame in so many, and at most so many


class DecoderStage(Closing):
    """Keeps a network's backbone out of training, until the stage's share is spent or earlier.

    A context manager: on leaving, the backbone can be trained again, whatever happened.

    Args:
        network: one with a submodule `backbone`, whose batch norms keep their statistics.
        share: of the budget at most; 0 = no such stage.
        least_gain: the stage ends where the loss fell by less than this between two looks,
            relative to the lowest before; 0 = it lasts its whole share.
        loss: measures the loss on frames that are held back from training.
    """

    def __init__(
        self, network: nn.Module, share: float, least_gain: float, loss: Callable[[], float]
    ) -> None:
        backbone = network.get_submodule("backbone")
        self._frozen = [p for p in backbone.parameters() if p.requires_grad]
        self._share = share
        self._least_gain = least_gain
        self._loss = loss
        self._best = math.inf
        self._next_look = 0.0
        self.running = False

    def __enter__(self) -> DecoderStage:
        if self._share > 0:
            self.running = True
            for parameter in self._frozen:
                parameter.requires_grad_(False)
        return self

    def follow(self, done: float) -> None:
        """End the stage where it is time to; call it before each step.

        Args:
            done: share of the training's budget that is spent.
        """
        if not self.running:
            return
        if done >= self._share:
            self.close()
        elif self._least_gain > 0 and done >= self._next_look:
            self._next_look = done + _LOOK_EVERY
            loss = self._loss()
            if loss > (1 - self._least_gain) * self._best:
                self.close()
            self._best = min(self._best, loss)

    def close(self) -> None:
        """End the stage."""
        if self.running:
            self.running = False
            for parameter in self._frozen:
                parameter.requires_grad_(True)


def hold_back(samples: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """Split samples into those to train on and a few, spread over all, to measure progress on."""
    few = min(_MOST_HELD_BACK, len(samples) // _HELD_BACK)
    held = {(2 * i + 1) * len(samples) // (2 * few) for i in range(few)}
    trained = [sample for i, sample in enumerate(samples) if i not in held]
    return trained, [samples[i] for i in sorted(held)]


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
        2e-3, "peak learning rate from a parent or the base student", minimum=1e-7, maximum=1.0
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay", minimum=0.0, maximum=1.0)
    clip_norm: float = setting(10.0, "gradients are clipped to this norm", minimum=0.0, maximum=1e6)
    batch_norm: str = setting(
        "auto",
        "batch-norm statistics: of each batch, then averaged over the frames (batch), or kept as "
        "they are (frozen); auto = batch from random weights, frozen from a parent or the base",
        choices=("auto", "batch", "frozen"),
    )
    decoder_first: float = setting(
        0.0,
        "share of the budget in which at most the decoder alone is trained, in cheaper steps; 0 = "
        "the whole network from the start. Only from a parent or the base, with frozen batch norms",
        minimum=0.0,
        maximum=1.0,
    )
    decoder_gain: float = setting(
        0.01,
        "the decoder's stage ends early where the loss on held-back training frames fell by less "
        "than this in a twentieth of the budget, relative; 0 = it lasts its whole share",
        minimum=0.0,
        maximum=1.0,
    )
    threads: int = setting(
        0,
        "CPU threads of the training; 0 = half the cores, all where no student is live yet",
        minimum=0,
        maximum=512,
    )
    device: str = setting("auto", "device to train on: auto, cpu, cuda or cuda:N")
    seed: int = setting(0, "seed of shuffling and augmentation", minimum=0, maximum=2**31 - 1)


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
    decoder_steps: int  # of them, those of the decoder alone
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
        self._decoder_share = settings.decoder_first if has_parent and self._frozen else 0.0
        optimizer = make_optimizer(network, self._peak, settings.weight_decay)
        self._objective = make_objective(network.bins, loss, has_dpm=network.has_dpm)
        clip = settings.clip_norm
        self._stepper = Stepper(
            self.network,
            optimizer,
            self._loss,
            clip_norm=clip,
            frozen=self.network if self._frozen else None,
        )
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
        step, decoder_steps, elapsed, paused_s = 0, 0, 0.0, 0.0
        bad = BadSteps()
        with self._decoder_stage() as stage:
            while (done := self._share_done(step, elapsed)) < 1.0:
                paused_s += pause()
                stage.follow(done)
                rate = warm_up_then_cosine(self._peak, done)
                did = self._stepper.step(*self._draw_batch(stage.running), rate)
                step += 1
                decoder_steps += stage.running
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
        if not self._frozen:
            average_batch_norms(self.network, self._some_batches())
        self.network.eval()
        few = max(1, len(losses) // 20)
        first, last = float(np.mean(losses[:few])), float(np.mean(losses[-few:]))
        seconds = time.monotonic() - start - paused_s
        return TrainResult(step, decoder_steps, bad.total, seconds, first, last)

    def _decoder_stage(self) -> DecoderStage:
        gain = self.settings.decoder_gain
        held_back: list[Sample] = []
        self._decoder_samples = list(self._samples)
        if gain > 0:
            self._decoder_samples, held_back = hold_back(self._samples)

        def loss() -> float:
            images, depth = self._tensors(held_back)
            self.network.eval()  # the next step puts it back to training
            with torch.no_grad():
                return self._loss(self.network(images), depth).total.item()

        share = self._decoder_share if held_back or gain == 0 else 0.0
        return DecoderStage(self.network, share, gain, loss)

    def _loss(self, raw: Tensor, depth: Tensor) -> LossParts:
        return self._objective(self.network.output(raw), depth)

    def _share_done(self, step: int, elapsed: float) -> float:
        by_steps = step / self.settings.iterations
        by_time = elapsed / self.settings.seconds if self.settings.seconds > 0 else 0.0
        return max(by_steps, by_time)

    def _expected_steps(self, step: int, elapsed: float) -> int:
        done = self._share_done(step, elapsed)
        return max(step, min(self.settings.iterations, round(step / done)))

    def _draw_batch(self, decoder_only: bool) -> tuple[Tensor, Tensor]:
        samples = self._decoder_samples if decoder_only else self._samples
        chosen = self._rng.integers(len(samples), size=self.settings.batch_size)
        drawn = [augment(samples[i], self._augmentation, self._rng) for i in chosen]
        return self._tensors(drawn)

    def _tensors(self, samples: Sequence[Sample]) -> tuple[Tensor, Tensor]:
        images = torch.from_numpy(np.stack([s.image for s in samples])).to(self.device)
        depth = torch.from_numpy(np.stack([s.depth for s in samples])).to(self.device)
        return normalise(images), depth[:, None]

    def _some_batches(self) -> Iterator[Tensor]:
        size = max(self.settings.batch_size, 8)
        some = [self._samples[i] for i in self._rng.permutation(len(self._samples))[: 16 * size]]
        for first in range(0, len(some), size):
            yield self._tensors(some[first : first + size])[0]
