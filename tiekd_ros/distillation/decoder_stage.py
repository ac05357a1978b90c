"""The decoder first: cheaper steps for as long as they pay, then the whole network.

From trained weights, most of what a new place asks for can be learnt behind the backbone.
While the backbone rests, no gradient flows through it, nor is anything kept for one, which
is the larger part of a step. What it cannot give shows in frames that are not trained on: once
their loss falls no more, the backbone is trained as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")

_LOOK_EVERY = 0.05  # of the budget
_HELD_BACK, _MOST_HELD_BACK = 8, 8  # one frame in so many, and at most so many


class DecoderStage:
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
        self._resting = [p for p in backbone.parameters() if p.requires_grad]
        self._share = share
        self._least_gain = least_gain
        self._loss = loss
        self._best = math.inf
        self._next_look = 0.0
        self.running = False

    def __enter__(self) -> DecoderStage:
        if self._share > 0:
            self.running = True
            for parameter in self._resting:
                parameter.requires_grad_(False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def follow(self, done: float) -> None:
        """End the stage where it is time to; call it before each step.

        Args:
            done: share of the training's budget that is spent.
        """
        if not self.running:
            return
        if done >= self._share:
            self._end()
        elif self._least_gain > 0 and done >= self._next_look:
            self._next_look = done + _LOOK_EVERY
            self._look()

    def _look(self) -> None:
        loss = self._loss()
        if loss > (1 - self._least_gain) * self._best:
            self._end()
        self._best = min(self._best, loss)

    def _end(self) -> None:
        if self.running:
            self.running = False
            for parameter in self._resting:
                parameter.requires_grad_(True)


def hold_back(samples: Sequence[_T]) -> tuple[list[_T], list[_T]]:
    """Split samples into those to train on and a few, spread over all, to measure progress on."""
    few = min(_MOST_HELD_BACK, len(samples) // _HELD_BACK)
    held = {(2 * i + 1) * len(samples) // (2 * few) for i in range(few)}
    trained = [sample for i, sample in enumerate(samples) if i not in held]
    return trained, [samples[i] for i in sorted(held)]
