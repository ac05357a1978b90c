"""One training step for `distill.py`: by part, as the package does it and done plainly."""

from __future__ import annotations

import itertools
import time

import numpy as np
import torch
from harness import Spread, progress, spread
from straightforward_loss import straightforward_loss
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.method.first_student import first_input_size
from tiekd_ros.method.losses import LossSettings, make_objective
from tiekd_ros.method.samples import Sample, augment, cell_depth, fit_sample
from tiekd_ros.method.stepping import freeze_batch_norms, make_optimizer
from tiekd_ros.rounds.limits import default_threads
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import start_from_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import ConvNormAct, FastStudent
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import to_channels_last
from tiekd_ros.worlds import IndoorWorld, WorldSettings

STRAIGHTFORWARD = "plain"
_PARTS = ("data", "forward", "loss", "backward", "optimiser")
_WARM_UP = 2
_PLAN = RoundPlan()
_BINS = DepthBins()
_IMAGE = (640, 480)
_SECOND = 1_000_000_000


def time_steps(repeats: int) -> dict[str, dict[str, Spread]]:
    """Return milliseconds of a step's parts and of the whole by the way it is done.

    Arms take turns, so that the machine's noise hits all alike. All start from the base student,
    with frozen batch norms, and see the same frames; as many threads as a first round has.
    """
    torch.set_num_threads(default_threads(inference=False))
    samples = _samples()
    arms = {
        STRAIGHTFORWARD: _Arm(samples, plain=True),
        "as it is": _Arm(samples),
        "decoder alone": _Arm(samples, decoder_only=True),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    with progress() as bar:
        task = bar.add_task("steps", total=(_WARM_UP + repeats) * len(arms))
        for turn in range(_WARM_UP + repeats):
            for name, arm in arms.items():
                found = arm.step()
                if turn >= _WARM_UP:
                    times[name].append([*found, sum(found)])
                bar.advance(task)
    return {
        name: dict(zip((*_PARTS, "step"), map(spread, zip(*own, strict=True)), strict=True))
        for name, own in times.items()
    }


class _Arm:
    """One way to do a step."""

    def __init__(
        self, samples: list[Sample], *, plain: bool = False, decoder_only: bool = False
    ) -> None:
        self._samples = samples
        height, width = samples[0].depth.shape
        self._network = start_from_base(_BINS, InputSize(height, width), None)
        to_channels_last(self._network)
        self._network.backbone.requires_grad_(not decoder_only)
        rate, decay = _PLAN.train.fine_tune_rate, _PLAN.train.weight_decay
        self._optimizer = make_optimizer(self._network, rate, decay)
        objective = make_objective(_BINS, LossSettings())
        self._loss = lambda raw, depth: objective(self._network.output(raw), depth)
        if plain:
            parameters = self._network.parameters()
            self._optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            self._loss = straightforward_loss(_BINS, LossSettings())
            _separate_norms(self._network)
        self._network.train()
        freeze_batch_norms(self._network)
        self._rng = np.random.default_rng(0)

    def step(self) -> list[float]:
        """Do a step; return milliseconds of its parts."""
        at = [time.perf_counter()]
        images, depth = self._draw()
        at.append(time.perf_counter())
        raw = self._network(images)
        at.append(time.perf_counter())
        loss = self._loss(raw, depth).total
        at.append(time.perf_counter())
        loss.backward()
        at.append(time.perf_counter())
        nn.utils.clip_grad_norm_(self._network.parameters(), _PLAN.train.clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        at.append(time.perf_counter())
        return [1e3 * (end - start) for start, end in itertools.pairwise(at)]

    def _draw(self) -> tuple[Tensor, Tensor]:
        drawn = [augment(sample, _PLAN.augment, self._rng) for sample in self._samples]
        images = torch.from_numpy(np.stack([s.image for s in drawn]))
        depth = torch.from_numpy(np.stack([s.depth for s in drawn]))
        return normalise(images), cell_depth(depth[:, None], FastStudent.output_scale)


class _SeparateNorm(nn.Module):
    """A batch norm with frozen statistics as a layer of its own, as it is written down."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return functional.batch_norm(
            x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )


def _separate_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, ConvNormAct):
            module.bn = _SeparateNorm(module.bn)


def _samples() -> list[Sample]:
    """Return a batch of views of the synthetic world at a first student's input size."""
    world = IndoorWorld(WorldSettings())
    size = first_input_size(_IMAGE[1], _IMAGE[0], _PLAN.student)
    camera = IndoorWorld.default_intrinsics(*_IMAGE)
    views = [world.render(n * _SECOND, *_IMAGE, camera) for n in range(_PLAN.train.batch_size)]
    return [fit_sample(view.image, view.depth, camera, size) for view in views]
