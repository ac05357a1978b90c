"""How much of recent depth is a distance, and why the rest is none.

Shapes: H x W, the depth image's size.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.images import DepthMap
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common.reporting import ERROR, Report
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.student import DepthBins
from tiekd_ros.student.bins import range_fault, range_left

_WINDOW_S = 5.0
_PIXELS = 5000
"""About so many pixels of an image are looked at: some 50 us at any size, right to a percent."""
_NONE = np.empty(0, np.float32)


class Shares(NamedTuple):
    """Shares of pixels that are a distance, unknown, nearer than the range and beyond it."""

    known: float
    unknown: float
    near: float
    far: float


class KnownShare:
    """Looks at some pixels of each depth image; keeps what it saw in the last seconds.

    `add` is for one thread; the rest may be asked from others.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, npt.NDArray[np.int64]]] = deque()
        self._confidence: npt.NDArray[np.float32] = _NONE
        self._lock = threading.Lock()

    def add(
        self, depth: DepthMap, confidence: npt.NDArray[np.float32] | None, now_s: float
    ) -> None:
        """Take note of an image.

        Args:
            depth: metres as it is published, (H, W).
            confidence: 0..1, (H, W), where it was computed.
            now_s: monotonic time.
        """
        step = max(1, round((depth.size / _PIXELS) ** 0.5))
        counts = _counted(depth[::step, ::step])
        with self._lock:
            self._counts.append((now_s, counts))
            while now_s - self._counts[0][0] > _WINDOW_S:
                self._counts.popleft()
            self._confidence = _NONE if confidence is None else confidence[::step, ::step].copy()

    def shares(self, now_s: float) -> Shares:
        """Return the shares of the last seconds; all NaN where there was no depth."""
        with self._lock:
            recent = [counts for when, counts in self._counts if now_s - when <= _WINDOW_S]
        total = np.sum(recent, axis=0) if recent else np.zeros(4)
        return Shares(*(float(n / total.sum()) if total.any() else np.nan for n in total))

    def median_confidence(self) -> float:
        """Return the median confidence of the last image; NaN = not computed, or unknown."""
        with self._lock:
            finite = self._confidence[np.isfinite(self._confidence)]
        return float(np.median(finite)) if finite.size else np.nan


def _counted(pixels: DepthMap) -> npt.NDArray[np.int64]:
    known = np.count_nonzero(np.isfinite(pixels))
    if known == pixels.size:
        return np.array([known, 0, 0, 0])
    unknown, near = np.count_nonzero(np.isnan(pixels)), np.count_nonzero(pixels == -np.inf)
    return np.array([known, unknown, near, pixels.size - known - unknown - near])


def add_known_share(
    report: Report,
    known: KnownShare,
    settings: DepthSettings,
    bins: DepthBins | None,
    thresholds: DiagnosticSettings,
) -> None:
    """Add how much of depth is a distance, and what takes the rest away, with the remedy.

    Args:
        report: to add to.
        known: what was seen.
        settings: of depth_node.
        bins: the live student's, if there is one.
        thresholds: what to warn of.
    """
    shares, confidence = known.shares(time.monotonic()), known.median_confidence()
    report.add({"known share": shares.known, "median confidence": confidence})
    if bins is None:
        return
    fault = range_fault(bins, settings.min_range_m, settings.max_range_m)
    if fault:
        report.find(ERROR, fault)
        return
    what = f"{shares.known:.1%} of depth's pixels are a distance"
    limit = thresholds.limit("known_share")
    report.hold(limit, shares.known, what, _remedy(shares, confidence, settings, bins))


def _remedy(shares: Shares, confidence: float, settings: DepthSettings, bins: DepthBins) -> str:
    near, far = range_left(bins, settings.min_range_m, settings.max_range_m)
    most = max(shares.unknown, shares.near, shares.far)
    if most == shares.unknown:
        if settings.min_confidence > 0 and np.isnan(confidence):
            return "the student does not know its confidence: set min_confidence to 0"
        if settings.min_confidence > 0:
            return (
                f"most have less confidence than min_confidence = {settings.min_confidence:g} "
                f"(half of all pixels less than {confidence:.2f}): lower it"
            )
        return "most are unknown: see what the camera sees"
    if most == shares.near:
        is_chosen = settings.min_range_m >= near
        limit = "min_range_m" if is_chosen else "the near end of the student's range"
        return f"most are nearer than {limit} ({near:.2f} m): {_way_out(is_chosen, 'lower')}"
    is_chosen = 0 < settings.max_range_m <= far
    limit = "max_range_m" if is_chosen else "the far end of the student's range"
    return f"most are beyond {limit} ({far:.2f} m): {_way_out(is_chosen, 'raise')}"


def _way_out(is_chosen: bool, change: str) -> str:
    return f"{change} it" if is_chosen else "distil with frames of this place"
