"""The learning rate over a training: one cycle (Smith and Topin 2018), per iteration."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from tiekd_ros.errors import InvalidSettingError

START_DIVISOR = 25.0
END_DIVISOR = 100.0
RISING_SHARE = 0.3


def one_cycle(optimizer: Optimizer, iterations: int, max_lr: float = 1e-3) -> OneCycleLR:
    """Return the published schedule; call its `step()` once after every iteration.

    Cosine from max_lr / 25 up to max_lr at iteration 0.3 * iterations - 1, and down to
    max_lr / 2500 at iteration `iterations - 1`, the last one. Momentum is not cycled.

    Args:
        optimizer: its groups all get this learning rate, from now on.
        iterations: length of the whole training.
        max_lr: the peak.

    Raises:
        InvalidSettingError: there is no iteration, or max_lr is not positive.
    """
    if iterations < 1 or not max_lr > 0:
        raise InvalidSettingError(
            f"one cycle needs at least 1 iteration and a positive max_lr, got {iterations} "
            f"iterations and max_lr {max_lr!r}"
        )
    return OneCycleLR(
        optimizer,
        max_lr=max_lr,
        total_steps=iterations,
        pct_start=RISING_SHARE,
        anneal_strategy="cos",
        cycle_momentum=False,
        div_factor=START_DIVISOR,
        final_div_factor=END_DIVISOR,
    )
