"""Rules of a frame log: which images it keeps, by time and quality, and in which split.

The split is by time block, counted from the store's first frame, so that neighbours in time never
straddle it. Of each `held_out_every` blocks the second is held out, so that a short recording has
both splits. Nothing is kept right after a border, and a view that is stored already brings its
split with it. How a log is split is noted in it and holds for all that write to it later: else
students would be judged by frames that they were trained on.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

import cv2

from tiekd_ros.core.images import RgbImage, Thumbnail, thumbnail
from tiekd_ros.framelog.records import HELD_OUT, TRAIN, Split
from tiekd_ros.framelog.settings import FrameLogSettings

_LONGER_SIDE_PX = 320  # sharpness depends on scale: compare cameras at one size
_BLACK = 5  # grey levels; JPEG and sensor noise move a clipped pixel this far
_WHITE = 250


@dataclass(frozen=True)
class ImageStats:
    """Sharpness, exposure and thumbnail of an image."""

    thumbnail: Thumbnail
    sharpness: float
    """Variance of the Laplacian of the grey image, at most 320 pixels on the longer side."""
    black_share: float
    """Share of pixels that are clipped dark, 0..1."""
    white_share: float
    """Share of pixels that are clipped bright, 0..1."""
    brightness: float
    """Mean grey level, 0..255."""

    @property
    def exposure(self) -> float:
        """Share of pixels that are not clipped, 0..1."""
        return 1.0 - self.black_share - self.white_share


def measure_image(image: RgbImage) -> ImageStats:
    """Measure an RGB image, uint8 (H, W, 3).

    Raises:
        BadImageError: it is no such array.
    """
    small = thumbnail(image)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    factor = _LONGER_SIDE_PX / max(height, width)
    if factor < 1:  # never enlarge: that would only blur
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return ImageStats(
        thumbnail=small,
        sharpness=float(cv2.Laplacian(grey, cv2.CV_32F).var()),
        black_share=float((grey <= _BLACK).mean()),
        white_share=float((grey >= _WHITE).mean()),
        brightness=float(grey.mean()),
    )


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
    """The stored views nearest to a new one."""

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
    """Return whether a stamp follows the last kept one too closely.

    A stamp before the last one (a bag that loops, a simulation that was reset) is not too
    soon: it starts the interval anew.
    """
    if last_ns is None or stamp_ns < last_ns:
        return False
    return stamp_ns - last_ns < round(settings.min_interval_s * _NS_PER_S)


def quality_fault(settings: FrameLogSettings, stats: ImageStats) -> str | None:
    """Return why an image is too poor to keep, or None where it is not."""
    share = settings.max_clipped_share
    if stats.black_share > share or stats.brightness < settings.min_brightness:
        return UNDEREXPOSED
    if stats.white_share > share or stats.brightness > settings.max_brightness:
        return OVEREXPOSED
    if stats.sharpness < settings.min_sharpness:
        return BLURRED
    return None


def choose_split(
    settings: FrameLogSettings, stamp_ns: int, origin_ns: int, neighbours: Neighbours
) -> Choice:
    """Choose the split of a new view, or refuse it.

    Args:
        settings: how the log is split.
        stamp_ns: when the view was taken, nanoseconds.
        origin_ns: stamp of the log's first frame.
        neighbours: the stored views that are like it.
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


_READ = "SELECT value FROM meta WHERE key IN ('block_ns', 'held_out_every') ORDER BY key"


class SplitRule(NamedTuple):
    """Time blocks and share of the held-out split."""

    block_s: float
    """Length of a time block."""
    held_out_every: int
    """One block in so many is held out."""

    @classmethod
    def of(cls, settings: FrameLogSettings) -> SplitRule:
        """Return what settings say."""
        return cls(settings.block_s, settings.held_out_every)

    def put_into(self, settings: FrameLogSettings) -> FrameLogSettings:
        """Return settings that say this."""
        return dataclasses.replace(settings, **self._asdict())


def read_rule(connection: sqlite3.Connection) -> SplitRule | None:
    """Read how a log is split; None where no writer has settled it yet."""
    rows = connection.execute(_READ).fetchall()
    return SplitRule(rows[0][0] / _NS_PER_S, int(rows[1][0])) if len(rows) == 2 else None


def write_rule(connection: sqlite3.Connection, rule: SplitRule) -> None:
    """Settle how a log is split, in the caller's transaction."""
    values = (("block_ns", round(rule.block_s * _NS_PER_S)), ("held_out_every", rule[1]))
    connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
