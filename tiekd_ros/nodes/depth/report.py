"""What depth_node says of itself on /diagnostics."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.core.images import DepthMap
from tiekd_ros.diagnosis import keys
from tiekd_ros.diagnosis.machine import check_focal_length
from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common.reporting import (
    ERROR,
    OK,
    WARN,
    Percentiles,
    Rate,
    Report,
    Share,
    as_reported,
)
from tiekd_ros.nodes.common.settings import DepthSettings
from tiekd_ros.student.bins import DepthBins, range_fault, range_left
from tiekd_ros.student.checkpoint import StudentCard
from tiekd_ros.student.live import LiveStudent
from tiekd_ros.student.runtimes.base import StageTimes

_RECENT_S = 5.0


class FrameTimes(NamedTuple):
    """Where the time of one image went, milliseconds."""

    wait: float  # for the image before it to be done
    decode: float
    preprocess: float
    network: float
    postprocess: float
    publish: float


class FrameClock:
    """Follows one image, which `arrived` at a monotonic time, through the node."""

    def __init__(self, arrived: float) -> None:
        self._marks = [arrived, time.monotonic()]
        self._stages = StageTimes(0.0, 0.0, 0.0)

    def decoded(self) -> None:
        """The message has become an image."""
        self._marks.append(time.monotonic())

    def predicted(self, stages: StageTimes) -> None:
        """Depth is ready to publish; the runtime says where its part of the time went."""
        self._marks.append(time.monotonic())
        self._stages = stages

    def published(self) -> tuple[FrameTimes, float]:
        """Return where the time went, and the time now."""
        now = time.monotonic()
        ends = [*self._marks, now]
        wait, decode, predict, publish = (
            (after - before) * 1e3 for before, after in pairwise(ends)
        )
        preprocess, network = self._stages.preprocess, self._stages.network
        rest = predict - preprocess - network  # marking what is out of range, too
        return FrameTimes(wait, decode, preprocess, network, rest, publish), now


_PIXELS = 5000
"""About so many pixels of an image are looked at: some 50 us at any size, right to a percent."""
_NO_CONFIDENCE = np.empty(0, np.float32)


class PixelShares(NamedTuple):
    """Shares of pixels that are a finite distance, unknown, nearer than the range and beyond it."""

    valid: float
    unknown: float
    near: float
    far: float


class PixelStatistics:
    """Counts of valid and invalid pixels in the depth images of the last seconds, from samples.

    `add` is called by the frames' thread only; the rest by the executor's: the lock guards both
    fields.
    """

    def __init__(self) -> None:
        self._counts: deque[tuple[float, npt.NDArray[np.int64]]] = deque()
        self._confidence: npt.NDArray[np.float32] = _NO_CONFIDENCE
        self._lock = threading.Lock()

    def add(
        self, depth: DepthMap, confidence: npt.NDArray[np.float32] | None, now_s: float
    ) -> None:
        """Count the pixels of an image.

        Args:
            depth: metres as it is published, (H, W).
            confidence: 0..1, (H, W), where it was computed.
            now_s: monotonic time.
        """
        step = max(1, round((depth.size / _PIXELS) ** 0.5))
        counts = _counted(depth[::step, ::step])
        with self._lock:
            self._counts.append((now_s, counts))
            while now_s - self._counts[0][0] > _RECENT_S:
                self._counts.popleft()
            self._confidence = (
                _NO_CONFIDENCE if confidence is None else confidence[::step, ::step].copy()
            )

    def shares(self, now_s: float) -> PixelShares:
        """Return the shares of the last seconds; all NaN where there was no depth."""
        with self._lock:
            recent = [counts for when, counts in self._counts if now_s - when <= _RECENT_S]
        total = np.sum(recent, axis=0) if recent else np.zeros(4)
        return PixelShares(*(float(n / total.sum()) if total.any() else np.nan for n in total))

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


_recent = partial(Percentiles, window_s=_RECENT_S)


@dataclass
class DepthCounters:
    """What depth_node counts."""

    received: Rate = field(default_factory=Rate)
    published: Rate = field(default_factory=Rate)
    latency_ms: Percentiles = field(default_factory=Percentiles)
    recent_ms: Percentiles = field(default_factory=_recent)
    stages_ms: dict[str, Percentiles] = field(
        default_factory=lambda: {stage: _recent() for stage in FrameTimes._fields}
    )
    without_student: int = 0
    without_subscribers: int = 0
    refused: int = 0
    last_refusal: str = ""
    last_refusal_s: float = -math.inf
    image_size: tuple[int, int] | None = None
    dropped_by_swap: int = 0
    drop_share: Share = field(default_factory=Share)
    pixels: PixelStatistics = field(default_factory=PixelStatistics)
    _replaced_before_swap: int = 0

    def refuse(self, reason: str) -> None:
        """Count an image that could not be used."""
        self.refused += 1
        self.last_refusal, self.last_refusal_s = reason, time.monotonic()

    def publish(self, clock: FrameClock) -> None:
        """Count an image whose depth has just gone out."""
        times, now = clock.published()
        self.published.tick(now)
        self.latency_ms.add(sum(times), now)
        self.recent_ms.add(sum(times), now)
        for stage, took in times._asdict().items():
            self.stages_ms[stage].add(took, now)

    def begin_swap(self, replaced: int) -> None:
        """A swap begins; `replaced` is the mailbox's count of frames lost so far."""
        self._replaced_before_swap = replaced

    def end_swap(self, replaced: int) -> None:
        """The swap is over: what was lost since it began counts as lost by it."""
        self.dropped_by_swap += replaced - self._replaced_before_swap


def add_depth_report(
    report: Report,
    counters: DepthCounters,
    student: LiveStudent,
    model: CameraModel | None,
    thresholds: DiagnosticSettings,
    *,
    measured: Mapping[str, float],
    dropped: int,
    active: bool,
    has_subscribers: bool,
) -> None:
    """Add what depth_node finds, with remedies, and its numbers.

    Args:
        report: to add to.
        counters: what it counted.
        student: what it runs.
        model: the calibration of the images, if one came.
        thresholds: what to warn of.
        measured: milliseconds of the runtimes that were compared.
        dropped: images that gave way to newer ones.
        active: whether the node is.
        has_subscribers: whether anything that it computes has.
    """
    now = time.monotonic()
    card = student.runtime.card if student.runtime is not None else None
    if card is None:
        report.find(
            WARN,
            "no accepted student, so no depth: the companion brings the first one with the first "
            "labels; where it was refused, log more frames and call the distill service",
        )
    if student.state.error:
        report.find(ERROR, student.state.error)
    if now - counters.last_refusal_s < _RECENT_S:
        report.find(ERROR, counters.last_refusal)
    _check_focal_length(report, counters, model, card)
    if card is not None and active and not has_subscribers:
        report.find(OK, "depth has no subscribers, so the network is paused")
    _add_values(report, counters, student, now, measured, dropped)
    counters.drop_share.add(now, dropped, counters.received.total)
    _hold_limits(report, counters, card, thresholds, now, busy=active and has_subscribers)


def _hold_limits(
    report: Report,
    counters: DepthCounters,
    card: StudentCard | None,
    thresholds: DiagnosticSettings,
    now: float,
    *,
    busy: bool,
) -> None:
    age_days = math.nan if card is None else _age_days(card)
    drops = counters.drop_share.value()
    report.add({keys.DROP_SHARE: drops, keys.STUDENT_AGE: age_days})
    if card is None:
        return
    report.hold(
        thresholds.limit("student_age_days"),
        age_days,
        f"the student is {age_days:.1f} days old",
        "call the distill service, or set distill.period_s",
    )
    if not busy:
        return
    rate, p95 = counters.published.value(now), counters.recent_ms.at(95, now)
    slow = "see device and runtime, use a smaller student, or rest other programs"
    limits = (
        ("depth_rate", rate, f"depth comes at {rate:.1f} Hz", f"see the camera's rate; {slow}"),
        ("latency_p95_ms", p95, f"p95 latency is {p95:.0f} ms", slow),
        ("drop_share", drops, f"{drops:.0%} of the images are dropped", slow),
    )
    for name, value, what, remedy in limits:
        report.hold(thresholds.limit(name), value, what, remedy)


def _age_days(card: StudentCard) -> float:
    try:
        created = datetime.fromisoformat(card.created)
    except ValueError:
        return math.nan
    if created.tzinfo is None:
        created = created.replace(tzinfo=timezone.utc)
    return (datetime.now(timezone.utc) - created).total_seconds() / 86400


def _add_values(
    report: Report,
    counters: DepthCounters,
    student: LiveStudent,
    now: float,
    measured: Mapping[str, float],
    dropped: int,
) -> None:
    live, runtime = student.state, student.runtime
    report.add(
        {
            keys.STUDENT: live.version or "none",
            keys.IMAGE_RATE: counters.received.value(now),
            keys.DEPTH_RATE: counters.published.value(now),
            keys.LATENCY_P50: counters.latency_ms.at(50, now),
            keys.LATENCY_P95: counters.recent_ms.at(95, now),
            keys.LATENCY_P99: counters.latency_ms.at(99, now),
            **{keys.STAGE_TIME.format(s): p.at(50, now) for s, p in counters.stages_ms.items()},
            keys.RUNTIME: "none" if runtime is None else runtime.description,
            keys.RUNTIME_MEASURED: ", ".join(f"{name} {ms:.1f}" for name, ms in measured.items())
            or "nothing to compare",
            keys.IMAGES_RECEIVED: counters.received.total,
            keys.DEPTH_PUBLISHED: counters.published.total,
            keys.IMAGES_DROPPED: dropped,
            keys.IMAGES_DROPPED_BY_SWAP: counters.dropped_by_swap,
            keys.IMAGES_WITHOUT_STUDENT: counters.without_student,
            keys.IMAGES_WITHOUT_SUBSCRIBERS: counters.without_subscribers,
            keys.IMAGES_REFUSED: counters.refused,
            keys.STUDENT_SWAPS: live.swaps,
            keys.STUDENT_LOADING: live.loading,
        }
    )


def _check_focal_length(
    report: Report, counters: DepthCounters, model: CameraModel | None, card: StudentCard | None
) -> None:
    if counters.image_size is None or model is None or card is None or card.focal_px is None:
        return
    width, height = counters.image_size
    intrinsics = model.intrinsics(width, height)
    if intrinsics is None:
        return
    focal = intrinsics.fx * card.input_size.width / width
    report.find_all(as_reported(check_focal_length("the student", card.focal_px[0], focal)))


def add_pixel_report(
    report: Report,
    pixels: PixelStatistics,
    settings: DepthSettings,
    bins: DepthBins | None,
    thresholds: DiagnosticSettings,
) -> None:
    """Add the share of valid depth pixels, and the main reason why others are not, with a remedy.

    Args:
        report: to add to.
        pixels: of the last seconds.
        settings: of depth_node.
        bins: the live student's, if there is one.
        thresholds: of the diagnostics.
    """
    shares, confidence = pixels.shares(time.monotonic()), pixels.median_confidence()
    report.add({keys.VALID_SHARE: shares.valid, keys.MEDIAN_CONFIDENCE: confidence})
    if bins is None:
        return
    fault = range_fault(bins, settings.min_range_m, settings.max_range_m)
    if fault:
        report.find(ERROR, fault)
        return
    what = f"{shares.valid:.1%} of depth's pixels are a distance"
    limit = thresholds.limit("valid_share")
    report.hold(limit, shares.valid, what, _remedy(shares, confidence, settings, bins))


def _remedy(
    shares: PixelShares, confidence: float, settings: DepthSettings, bins: DepthBins
) -> str:
    near, far = range_left(bins, settings.min_range_m, settings.max_range_m)
    most = max(shares.unknown, shares.near, shares.far)
    elsewhere = "distil with frames of this place"
    if most == shares.unknown:
        if settings.min_confidence > 0 and np.isnan(confidence):
            return "the student does not know its confidence: set min_confidence to 0"
        if settings.min_confidence > 0:
            return (
                f"most have less confidence than min_confidence = {settings.min_confidence:g} "
                f"(half of all pixels less than {confidence:.2f}): {elsewhere}, or lower it"
            )
        return "most are unknown: see what the camera sees"
    if most == shares.near:
        if settings.min_range_m >= near:
            return f"most are nearer than min_range_m ({near:.2f} m): lower it"
        end = f"the near end of the student's range ({near:.2f} m)"
        return f"most are nearer than {end}: {elsewhere}"
    if 0 < settings.max_range_m <= far:
        return f"most are beyond max_range_m ({far:.2f} m): raise it"
    return f"most are beyond the far end of the student's range ({far:.2f} m): {elsewhere}"
