"""Which frames a round trains on, and what student a first round starts with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tiekd_ros.distillation.samples import Sample
from tiekd_ros.errors import TiekdError
from tiekd_ros.images import DepthMap
from tiekd_ros.settings import Settings, setting
from tiekd_ros.student import DepthBins, InputSize
from tiekd_ros.student.bins import LOG, UNIFORM

BASE_START, RANDOM_START = "base", "random"
STARTS = (BASE_START, RANDOM_START)

_RANGES_M = (10.0, 20.0, 40.0, 80.0, 200.0)


class RoundRefusedError(TiekdError):
    """A round cannot start; the message says what is missing."""


@dataclass(frozen=True)
class StudentSettings(Settings):
    """The shape of a first student; later ones inherit it from their parent."""

    start: str = setting(
        BASE_START,
        "weights to start from: the base student that ships (base, trained on synthetic rooms), "
        "or random ones",
        choices=STARTS,
    )
    pixels: int = setting(
        71680, "network input size; its aspect ratio is the camera's", minimum=4096, maximum=2**24
    )
    bins: int = setting(257, "number of depth bins", minimum=2, maximum=4096)
    min_depth_m: float = setting(
        0.1, "near end of the depth range", unit="m", minimum=1e-3, maximum=100.0
    )
    max_depth_m: float = setting(
        0.0,
        "far end of the depth range; 0 = from the first labels (10, 20, 40, 80 or 200 m)",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    spacing: str = setting(
        UNIFORM,
        "depth bins of equal width, or of equal relative width (log)",
        choices=(UNIFORM, LOG),
    )


@dataclass(frozen=True)
class RoundSettings(Settings):
    """When a round may start and what it uses."""

    min_frames: int = setting(
        40, "labelled training frames before a round can start", minimum=1, maximum=10**6
    )
    min_held_out: int = setting(
        4, "labelled held-out frames before a round can start", minimum=1, maximum=10**6
    )
    period_s: float = setting(
        0.0,
        "time between rounds that start by themselves; 0 = only when /tiekd/distill is called",
        unit="s",
        minimum=0.0,
        maximum=1e7,
    )
    min_new_labels: int = setting(
        30, "new labelled frames that a round by period waits for", minimum=1, maximum=10**6
    )
    max_frames: int = setting(
        400, "training frames of a round; the newest half first", minimum=1, maximum=10**6
    )
    max_held_out: int = setting(100, "held-out frames that judge a round", minimum=1, maximum=10**6)


def check_enough(train: int, held_out: int, settings: RoundSettings) -> None:
    """Refuse a round without enough labelled frames.

    Raises:
        RoundRefusedError: with the numbers there are and the numbers needed.
    """
    if train < settings.min_frames or held_out < settings.min_held_out:
        raise RoundRefusedError(
            f"too few labelled frames: {train} for training (need {settings.min_frames}), "
            f"{held_out} held out (need {settings.min_held_out}); keep the camera moving and the "
            "teacher running, then call again"
        )


def choose_frames(ids: Sequence[int], limit: int, seed: int) -> list[int]:
    """Return at most `limit` of the ids (oldest first): the newest, and a draw of the older.

    Half of the places go to the newest frames, so that the place as it is now is learnt; the
    other half is drawn from all earlier ones, so that the place as it was is not forgotten.
    """
    if len(ids) <= limit:
        return list(ids)
    newest = list(ids[len(ids) - (limit + 1) // 2 :])
    older = random.Random(seed).sample(list(ids[: len(ids) - len(newest)]), limit - len(newest))
    return sorted(older) + newest


def first_bins(depths: Sequence[DepthMap], settings: StudentSettings) -> DepthBins:
    """Return the bins of a first student; the range holds 99.5 % of the labels if not given.

    Raises:
        RoundRefusedError: no label has a known pixel.
    """
    far = settings.max_depth_m
    if far == 0:
        known = [d[np.isfinite(d)][::16] for d in depths]
        pixels = np.concatenate(known) if known else np.empty(0, np.float32)
        if pixels.size == 0:
            raise RoundRefusedError("no labelled frame has a known depth; look at the teacher")
        reach = float(np.percentile(pixels, 99.5))
        far = next((r for r in _RANGES_M if r >= reach), _RANGES_M[-1])
    return DepthBins(settings.bins, settings.min_depth_m, far, settings.spacing)


def first_input_size(height: int, width: int, settings: StudentSettings) -> InputSize:
    """Return the input size of a first student for images of this size."""
    return InputSize.near(height, width, settings.pixels)


def median_focal(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Return the median focal lengths (fx, fy) in pixels of samples, None where none has any."""
    known = [s.intrinsics for s in samples if s.intrinsics is not None]
    if not known:
        return None
    return float(np.median([k.fx for k in known])), float(np.median([k.fy for k in known]))
