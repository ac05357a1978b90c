"""What depth_node says of itself on /diagnostics."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import pairwise
from typing import NamedTuple

from sensor_msgs.msg import CameraInfo

from tiekd_ros.diagnosis.thresholds import DiagnosticSettings
from tiekd_ros.nodes.common.conversions import intrinsics_of
from tiekd_ros.nodes.common.reporting import ERROR, OK, WARN, Report
from tiekd_ros.nodes.common.statistics import Percentiles, Rate, Share
from tiekd_ros.nodes.depth.known_share import KnownShare
from tiekd_ros.student import LiveStudent, StageTimes, StudentCard

_FOCAL_TOLERANCE = 0.05
"""A student learnt depth for one focal length; this much off, its scale is off as much."""
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
    """Follows one image through the node.

    Args:
        arrived: when it came, monotonic seconds.
    """

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


def _recent() -> Percentiles:
    return Percentiles(window_s=_RECENT_S)


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
    unheard: int = 0
    refused: int = 0
    last_refusal: str = ""
    last_refusal_s: float = -math.inf
    image_size: tuple[int, int] | None = None
    dropped_by_swap: int = 0
    drop_share: Share = field(default_factory=Share)
    known: KnownShare = field(default_factory=KnownShare)
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
    info: CameraInfo | None,
    thresholds: DiagnosticSettings,
    *,
    measured: Mapping[str, float],
    dropped: int,
    active: bool,
    heard: bool,
) -> None:
    """Add what depth_node finds, with remedies, and its numbers.

    Args:
        report: to add to.
        counters: what it counted.
        student: what it runs.
        info: the calibration of the images, if one came.
        thresholds: what to warn of.
        measured: milliseconds of the runtimes that were compared.
        dropped: images that gave way to newer ones.
        active: whether the node is.
        heard: whether anybody listens to what it publishes.
    """
    now = time.monotonic()
    card = student.runtime.card if student.runtime is not None else None
    if card is None:
        report.find(
            WARN, "no accepted student, so no depth; log frames and call the distill service"
        )
    if student.state.error:
        report.find(ERROR, student.state.error)
    if now - counters.last_refusal_s < _RECENT_S:
        report.find(ERROR, counters.last_refusal)
    _check_focal_length(report, counters, info, card)
    if card is not None and active and not heard:
        report.find(OK, "nobody listens to depth, so the network rests")
    _add_values(report, counters, student, now, measured, dropped)
    counters.drop_share.add(now, dropped, counters.received.total)
    _hold_limits(report, counters, card, thresholds, now, busy=active and heard)


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
    report.add({"drop share": drops, "student age [days]": age_days})
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
            "student": live.version or "none",
            "image rate [Hz]": counters.received.value(now),
            "depth rate [Hz]": counters.published.value(now),
            "latency p50 [ms]": counters.latency_ms.at(50, now),
            "latency p95 [ms]": counters.recent_ms.at(95, now),
            "latency p99 [ms]": counters.latency_ms.at(99, now),
            **{f"time {s} [ms]": p.at(50, now) for s, p in counters.stages_ms.items()},
            "runtime": "none" if runtime is None else runtime.description,
            "runtime measured [ms]": _measured(measured),
            "images received": counters.received.total,
            "depth published": counters.published.total,
            "dropped (newest wins)": dropped,
            "dropped by swap": counters.dropped_by_swap,
            "images without student": counters.without_student,
            "images nobody listened for": counters.unheard,
            "images refused": counters.refused,
            "swaps": live.swaps,
            "loading": live.loading,
        }
    )


def _measured(runtimes: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {ms:.1f}" for name, ms in runtimes.items()) or "nothing to compare"


def _check_focal_length(
    report: Report, counters: DepthCounters, info: CameraInfo | None, card: StudentCard | None
) -> None:
    if counters.image_size is None or info is None or card is None or card.focal_px is None:
        return
    width, height = counters.image_size
    intrinsics = intrinsics_of(info, width, height)
    if intrinsics is None:
        return
    focal = intrinsics.fx * card.input_size.width / width
    if abs(focal / card.focal_px[0] - 1) > _FOCAL_TOLERANCE:
        report.find(
            WARN,
            f"the student was trained for a focal length of {card.focal_px[0]:.0f} px, this "
            f"camera's is {focal:.0f} px at its input size: depth is off by that ratio; "
            "distil with this camera's frames",
        )
