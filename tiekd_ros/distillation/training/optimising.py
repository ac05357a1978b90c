"""What does the steps of an offline training: its optimiser and objective, from its settings."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from tiekd_ros.distillation.losses import LossParts
from tiekd_ros.distillation.objectives import make_objective
from tiekd_ros.distillation.stepping import Stepper
from tiekd_ros.distillation.training.settings import OfflineSettings, TrainingPlan
from tiekd_ros.student import StudentNetwork


def make_optimizer(network: nn.Module, train: OfflineSettings) -> AdamW:
    """Return the optimiser over all of a network's parameters, batch norms and biases too.

    Its learning rate is the schedule's peak; a `Stepper` sets that of each step.
    """
    return AdamW(
        network.parameters(),
        lr=train.learning_rate,
        betas=(train.beta1, train.beta2),
        weight_decay=train.weight_decay,
    )


def make_stepper(
    network: StudentNetwork,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    *,
    wrap: Callable[[nn.Module], nn.Module] = lambda network: network,
    everywhere: Callable[[Tensor], bool] = bool,
) -> Stepper:
    """Return what does the steps of a training.

    Args:
        network: what is trained, in place.
        optimizer: of its parameters.
        plan: names the objective, and what a step is.
        wrap: makes of the network what is called with a batch, for several processes.
        everywhere: as of `Stepper`.

    Raises:
        InvalidSettingError: the objective does not suit the network.
    """
    objective = make_objective(network.bins, plan.loss, has_dpm=network.has_dpm)

    def loss(raw: Tensor, depth: Tensor) -> LossParts:
        return objective(network.output(raw), depth)

    return Stepper(
        wrap(network),
        optimizer,
        loss,
        clip_norm=plan.train.clip_norm,
        frozen=plan.train.batch_norm == "frozen",
        everywhere=everywhere,
    )
