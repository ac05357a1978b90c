"""Validation at the end of an epoch: the student's scores, and a copy of it fit for export.

Shapes: H and W the item's depth map, Hn and Wn the network's input.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.datasets import DepthItem
from tiekd_ros.evaluation.protocol import (
    ImageScore,
    Protocol,
    flip_averaged,
    mean_score,
    score_image,
)
from tiekd_ros.method.stepping import TrainingError, average_batch_norms
from tiekd_ros.student.architecture import InputSize, StudentNetwork
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.preprocessing import normalise, resize_image
from tiekd_ros.training.data import Items, TrainingSet, UnreadableItem, stack
from tiekd_ros.training.processes import Processes
from tiekd_ros.training.run_folder import RunState


class Validation(NamedTuple):
    """What a validation found."""

    scores: dict[str, float]
    """Means by name, without those that no image has."""
    bad: dict[str, str]
    """Items that could not be read and were passed over, with the reason."""


@dataclass(frozen=True)
class Validator:
    """Scores networks on the same items, each process its share of them.

    Attributes:
        items: validation data; scored against the truth, and against the teacher where known.
        size: what images are scaled to.
        protocol: which pixels count.
        flip: predict with the mean of the image's and its mirror image's prediction.
        skip_bad: pass over items that cannot be read, and list them.
    """

    items: Items
    size: InputSize
    protocol: Protocol
    flip: bool
    skip_bad: bool

    def score(self, network: StudentNetwork, processes: Processes) -> Validation:
        """Return the mean scores over all items, the same in all processes.

        Raises:
            TrainingError: not one image has depth to compare with.
        """
        network.eval()
        mine: list[ImageScore] = []
        bad: list[tuple[str, str]] = []
        for index in range(processes.rank, len(self.items), processes.count):
            try:
                item = self.items.item(index)
            except TiekdError as error:
                if not self.skip_bad:
                    raise
                bad.append((self.items.names[index], str(error)))
                continue
            mine.append(self._score_one(network, item, processes.device))
        scores, bad = processes.gather(mine), processes.gather(bad)
        values = mean_score(scores).values if scores else {}
        known = {name: value for name, value in values.items() if np.isfinite(value)}
        if not known:
            unread = (
                f" ({len(bad)} cannot be read, such as {bad[0][0]}: {bad[0][1]})" if bad else ""
            )
            raise TrainingError(
                f"none of the {len(self.items)} validation images has depth to compare with"
                f"{unread}; give another --val-split"
            )
        return Validation(known, dict(bad))

    def _score_one(
        self, network: StudentNetwork, item: DepthItem, device: torch.device
    ) -> ImageScore:
        truth, teacher = item.truth, item.teacher
        shape = item.image.shape[:2] if truth is None else truth.shape
        predicted = self._predict(network, item, (shape[0], shape[1]), device)
        if teacher is not None and teacher.shape != predicted.shape:
            teacher = None if truth is not None else teacher
        if truth is None and teacher is not None and teacher.shape != predicted.shape:
            predicted = self._predict(network, item, teacher.shape[:2], device)
        return score_image(predicted, truth, self.protocol, teacher)

    @torch.inference_mode()
    def _predict(
        self,
        network: StudentNetwork,
        item: DepthItem,
        shape: tuple[int, int],
        device: torch.device,
    ) -> DepthMap:
        image = torch.from_numpy(resize_image(item.image, self.size)).to(device)[None]
        x = normalise(image)  # (1, 3, Hn, Wn)
        depth = flip_averaged(network.predict_depth, x) if self.flip else network.predict_depth(x)
        if tuple(depth.shape[2:]) != shape:
            depth = functional.interpolate(depth, shape, mode="bilinear")
        predicted: DepthMap = depth[0, 0].float().cpu().numpy()
        return predicted


def selection_score(scores: dict[str, float]) -> float:
    """Return the score by which students of one run are compared; lower is better.

    AbsRel against the truth, or against the teacher where there is no truth.
    """
    return scores["abs_rel"] if "abs_rel" in scores else scores["abs_rel_T"]


_NORM_BATCHES = 16


@dataclass(frozen=True)
class EpochResult:
    """A student's scores, empty without validation data, and the network they are of."""

    network: StudentNetwork
    scores: dict[str, float]
    is_best: bool
    bad: dict[str, str]
    """Items that could not be read, with the reason; empty unless they are passed over."""


@dataclass(frozen=True)
class EpochEvaluator:
    """Scores students of one run, and prepares them for export.

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

    def evaluate(
        self, network: StudentNetwork, processes: Processes, best: dict[str, float]
    ) -> EpochResult:
        """Score a network in all processes; `best` are the best scores until now."""
        bad: dict[str, str] = {}
        exported = copy.deepcopy(network)
        if self.plain is not None:
            average_batch_norms(exported, self._plain_batches(self.plain, processes.device, bad))
        exported.eval()
        if self.validator is None:
            return EpochResult(exported, {}, is_best=True, bad=bad)
        scores, unread = self.validator.score(exported, processes)
        is_best = not best or selection_score(scores) < selection_score(best)
        return EpochResult(exported, scores, is_best, bad | unread)

    def student(
        self, card: StudentCard, result: EpochResult, state: RunState, steps: int
    ) -> Student:
        """Return the exported network with its card."""
        done = {"step": state.step, "steps": steps, "skipped": state.skipped}
        scores = {"validation": result.scores} if result.scores else {}
        new = replace(card, scores=scores, training={**self.training, **done})
        return Student(new, result.network)

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
            if not isinstance(batch, UnreadableItem):
                bad |= batch.bad
                yield normalise(batch.images.to(device))
