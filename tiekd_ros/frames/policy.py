"""What the frame log keeps, and in which split. Pure decisions: no file, no clock.

The split is by time block, so that neighbours in time (which show nearly the same view)
never straddle it, counted from the store's first frame: stamps may be wall time or start
at 0. Of each `held_out_every` blocks the second is held out, so that a short recording has
both splits. Two rules keep the splits apart where time does not: nothing is kept right
after a border, and a view that is stored already brings its split with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.frames.quality import Look
from tiekd_ros.frames.records import HELD_OUT, TRAIN, Split
from tiekd_ros.frames.settings import FrameLogSettings

KEPT = "kept"
TOO_SOON = "too_soon"
BLURRED = "blurred"
UNDEREXPOSED = "underexposed"
OVEREXPOSED = "overexposed"
NOT_NOVEL = "not_novel"
SPLIT_GUARD = "split_guard"
NO_ROOM = "no_room"

_HELD_OUT_BLOCK = 1  # counted from 0: train first, then held-out as early as can be
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True)
class Neighbours:
    """How a new view relates to the stored ones."""

    nearest: float
    """Thumbnail distance to the nearest stored frame; infinite where there is none."""
    identical_splits: frozenset[Split]
    """Splits of the stored frames that show the same view."""


@dataclass(frozen=True)
class Choice:
    """The split of a new view, or why it is not kept."""

    split: Split | None
    reason: str = KEPT


def is_too_soon(settings: FrameLogSettings, stamp_ns: int, last_ns: int | None) -> bool:
    """Say whether a stamp follows the last kept one too closely.

    A stamp before the last one (a bag that loops, a simulation that was reset) is not too
    soon: it starts the interval anew.
    """
    if last_ns is None or stamp_ns < last_ns:
        return False
    return stamp_ns - last_ns < round(settings.min_interval_s * _NS_PER_S)


def quality_fault(settings: FrameLogSettings, look: Look) -> str | None:
    """Return why an image is too poor to keep, or None where it is not."""
    share = settings.max_clipped_share
    if look.black_share > share or look.brightness < settings.min_brightness:
        return UNDEREXPOSED
    if look.white_share > share or look.brightness > settings.max_brightness:
        return OVEREXPOSED
    if look.sharpness < settings.min_sharpness:
        return BLURRED
    return None


def choose_split(
    settings: FrameLogSettings, stamp_ns: int, origin_ns: int, neighbours: Neighbours
) -> Choice:
    """Choose the split of a new view, or refuse it.

    `origin_ns` is the stamp of the store's first frame. The answer depends on nothing but
    the arguments.
    """
    if neighbours.nearest < settings.min_novelty:
        return Choice(None, NOT_NOVEL)
    same = neighbours.identical_splits
    if len(same) > 1:
        return Choice(None, SPLIT_GUARD)
    if same:
        return Choice(next(iter(same)))
    block_ns = round(settings.block_s * _NS_PER_S)
    block, into_block_ns = divmod(stamp_ns - origin_ns, block_ns)
    split = _split_of_block(settings, block)
    # Not the first frame: nothing lies before it, and an empty store would stay empty for ever.
    guarded = into_block_ns < settings.guard_share * block_ns and stamp_ns != origin_ns
    if guarded and split != _split_of_block(settings, block - 1):
        return Choice(None, SPLIT_GUARD)
    return Choice(split)


def _split_of_block(settings: FrameLogSettings, block: int) -> Split:
    return HELD_OUT if block % settings.held_out_every == _HELD_OUT_BLOCK else TRAIN
