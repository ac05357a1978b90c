"""What becomes of a student at the end of an epoch: scores, and a copy fit for export."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiekd_ros.distillation.batch_norms import average_batch_norms
from tiekd_ros.distillation.training.data import TrainingSet, Unreadable, stack
from tiekd_ros.distillation.training.processes import Processes
from tiekd_ros.distillation.training.snapshots import RunState
from tiekd_ros.distillation.training.validation import Validator, judged_by
from tiekd_ros.student import Student, StudentCard, StudentNetwork, normalise

_NORM_BATCHES = 16


@dataclass(frozen=True)
class Verdict:
    """A student's scores, empty without validation data, and the network they are of."""

    network: StudentNetwork
    scores: dict[str, float]
    is_best: bool
    bad: dict[str, str]
    """Items that could not be read, with the reason; empty unless they are passed over."""


@dataclass(frozen=True)
class Judge:
    """Judges students of one run.

    Attributes:
        validator: scores them; None = there is no validation data, and the last is the best.
        plain: training samples without variation, to average batch norms over; None = batch
            norms stay as training left them.
        batch_size: of those averages.
        training: what cards say of the training.
    """

    validator: Validator | None
    plain: TrainingSet | None
    batch_size: int
    training: dict[str, Any]

    def judge(
        self, network: StudentNetwork, processes: Processes, best: dict[str, float]
    ) -> Verdict:
        """Score a network in all processes; `best` are the best scores until now."""
        bad: dict[str, str] = {}
        judged = self._fit_for_use(network, processes.device, bad)
        if self.validator is None:
            return Verdict(judged, {}, is_best=True, bad=bad)
        scores, unread = self.validator.score(judged, processes)
        is_best = not best or judged_by(scores) < judged_by(best)
        return Verdict(judged, scores, is_best, bad | unread)

    def student(self, card: StudentCard, verdict: Verdict, state: RunState, steps: int) -> Student:
        """Return the judged network with its card."""
        done = {"step": state.step, "steps": steps, "skipped": state.skipped}
        scores = {"validation": verdict.scores} if verdict.scores else {}
        new = replace(card, scores=scores, training={**self.training, **done})
        return Student(new, verdict.network)

    def _fit_for_use(
        self, network: StudentNetwork, device: torch.device, bad: dict[str, str]
    ) -> StudentNetwork:
        """Return a copy in eval mode, its batch norms averaged over training samples."""
        judged = copy.deepcopy(network)
        if self.plain is not None:
            average_batch_norms(judged, self._plain_batches(self.plain, device, bad))
        return judged.eval()

    def _plain_batches(
        self, plain: TrainingSet, device: torch.device, bad: dict[str, str]
    ) -> Iterator[Tensor]:
        """Yield normalised images, the same ones in every process and at every time.

        Items that cannot be read and are passed over are noted in `bad`.
        """
        size = min(max(self.batch_size, 8), len(plain.items))
        order = np.random.default_rng(plain.seed).permutation(len(plain.items))
        order = order[: _NORM_BATCHES * size]
        for first in range(0, len(order) - size + 1, size):
            batch = stack([plain[(0, int(index))] for index in order[first : first + size]])
            if not isinstance(batch, Unreadable):
                bad |= batch.bad
                yield normalise(batch.images.to(device))
