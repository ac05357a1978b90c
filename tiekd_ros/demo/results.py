"""The demo's result: numbers for a program, a table and a picture for a person."""

from __future__ import annotations

import math
import threading
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tiekd_ros.core.images import DepthMap, RgbImage, thumbnail, thumbnail_distances
from tiekd_ros.report.pictures import Row, contact_sheet

_KEPT_VIEWS = 240  # of each student, for the pictures
_WHOLE = 0.9  # of the first turn's frames: a turn has them all, but for the loop's other load
_SAME_VIEW = 3.0  # grey levels between thumbnails: less shows nothing new


@dataclass(frozen=True)
class View:
    """One scored frame of the stream; depth maps in metres, (H, W)."""

    stamp_ns: int
    image: RgbImage
    depth: DepthMap
    truth: DepthMap


@dataclass
class StreamScore:
    """Errors pooled over all valid pixels of the scored frames of one student's turn."""

    frames: int = 0
    pixels: int = 0
    views: list[View] = field(default_factory=list)
    _truth: float = 0.0
    _truth_squared: float = 0.0
    _error_squared: float = 0.0
    _relative_error: float = 0.0

    def add(self, view: View, keep: bool = True) -> None:
        """Score a frame over the pixels whose truth is known; its depth must be finite there."""
        known = np.isfinite(view.truth) & (view.truth > 0)
        if not known.any():
            return
        truth = view.truth[known].astype(np.float64)
        depth = view.depth[known].astype(np.float64)
        error = depth - truth
        self.frames += 1
        self.pixels += truth.size
        self._truth += truth.sum()
        self._truth_squared += (truth**2).sum()
        self._error_squared += (error**2).sum()
        self._relative_error += (np.abs(error) / truth).sum()
        if keep and len(self.views) < _KEPT_VIEWS:
            self.views.append(view)

    @property
    def rmse(self) -> float:
        """Root mean square error in metres."""
        return math.sqrt(self._error_squared / self.pixels) if self.pixels else math.nan

    @property
    def abs_rel(self) -> float:
        """Mean of |error| / truth."""
        return self._relative_error / self.pixels if self.pixels else math.nan

    @property
    def constant_rmse(self) -> float:
        """RMSE in metres of the best constant depth on the same frames: the truth's spread."""
        if not self.pixels:
            return math.nan
        mean = self._truth / self.pixels
        return math.sqrt(max(self._truth_squared / self.pixels - mean * mean, 0.0))


class Scoreboard:
    """Scores by student version and turn; safe to use from several threads.

    A turn is a time in which the camera shows everything, so that the turns of any students
    show the same. The first turn after a student's swap, number 0, is its score.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._scores: dict[tuple[str, int], StreamScore] = {}

    def add(self, version: str, view: View, near_m: float, far_m: float, turn: int = 0) -> None:
        """Score a frame for a version.

        Args:
            version: the student that was live.
            view: what was published; -Inf counts as `near_m`, +Inf as `far_m`, and so does NaN.
            near_m: near end of the student's range.
            far_m: far end of the student's range.
            turn: how often the camera had shown everything since the student's swap.
        """
        depth = np.nan_to_num(view.depth, nan=far_m, posinf=far_m, neginf=near_m)
        if depth.shape != view.truth.shape:
            size = (view.truth.shape[1], view.truth.shape[0])
            depth = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
        view = View(view.stamp_ns, view.image, depth, view.truth)
        with self._lock:
            score = self._scores.setdefault((version, turn), StreamScore())
            score.add(view, keep=turn == 0)

    def of(self, version: str) -> StreamScore:
        """Return the score of a version's first turn (an empty one where it never ran)."""
        with self._lock:
            return self._scores.get((version, 0), StreamScore())

    def repeated(self, version: str) -> list[float]:
        """Return the RMSE in metres of a version's later turns that are as good as whole."""
        whole = _WHOLE * self.of(version).frames
        with self._lock:
            later = [s for (v, turn), s in sorted(self._scores.items()) if v == version and turn]
            return [score.rmse for score in later if score.frames >= whole]


def matching_views(before: list[View], after: list[View], count: int) -> list[tuple[View, View]]:
    """Return pairs of views of the same place under two students, at most `count`.

    Each view of `after` is paired with the one in `before` that resembles it most. Of the pairs
    that resemble best, those are taken that differ most from the ones taken already, so that a
    looped recording does not show one place twice.
    """
    if not before or not after:
        return []
    old = np.stack([thumbnail(v.image) for v in before])
    new = np.stack([thumbnail(v.image) for v in after])
    distances = np.stack([thumbnail_distances(one, old) for one in new])  # (after, before)
    partner = distances.argmin(axis=1)
    resemblance = distances.min(axis=1)
    good = np.flatnonzero(resemblance <= np.median(resemblance))
    chosen: list[int] = []
    apart = np.full(len(good), np.inf)
    while len(chosen) < min(count, len(good)) and apart.max() > _SAME_VIEW:
        index = int(good[int(apart.argmax())])
        chosen.append(index)
        apart = np.minimum(apart, thumbnail_distances(new[index], new[good]))
    return [(before[int(partner[i])], after[i]) for i in sorted(chosen)]


_ROWS = 6
NOISE = 0.02
"""Two turns of one student differ by less than this.

Measured on two busy cores, 120 frames a turn: RMSE 0.6253 and 0.6289 m, 0.6 % apart. Each run
adds its own to `demo.json` (`rmse_repeated`).
"""

LEAST_FRAMES = 10
"""Fewer measured frames say nothing about a student."""


@dataclass(frozen=True)
class RoundResult:
    """One round; `rmse` (m) and `abs_rel` are of the stream after it, over the first turn.

    `rmse_repeated` are the same student's later turns: they show how much noise is in one.
    """

    accepted: bool
    reason: str
    version: str
    held_out_before: dict[str, float]
    held_out_after: dict[str, float]
    baseline: str
    frames: int
    held_out_frames: int
    train_seconds: float
    trigger_to_live_seconds: float | None
    rmse: float = math.nan
    abs_rel: float = math.nan
    frames_measured: int = 0
    rmse_repeated: list[float] = field(default_factory=list)

    @classmethod
    def from_status(cls, status: dict[str, str], live: float | None) -> RoundResult:
        """Read a finished round from distill/status."""

        def scores(when: str) -> dict[str, float]:
            prefix = f"{when}."
            return {k[len(prefix) :]: float(v) for k, v in status.items() if k.startswith(prefix)}

        return cls(
            accepted=status["state"] == "accepted",
            reason=status["reason"],
            version=status["version"],
            held_out_before=scores("before"),
            held_out_after=scores("after"),
            baseline=status["baseline"],
            frames=int(status["train_frames"]),
            held_out_frames=int(status["held_out_frames"]),
            train_seconds=float(status["train_seconds"]),
            trigger_to_live_seconds=live,
        )


@dataclass(frozen=True)
class DemoResult:
    """What `demo.json` holds; depths in metres."""

    scene: str
    rounds: list[RoundResult]
    frames_published: int
    dropped_by_swap: int
    student: str | None
    state: str
    rmse: float = math.nan
    abs_rel: float = math.nan
    constant_rmse: float = math.nan
    frames_measured: int = 0
    seconds: float = 0.0

    @property
    def failures(self) -> list[str]:
        """What went wrong; empty where the demo succeeded."""
        found = []
        if not any(entry.accepted for entry in self.rounds):
            found.append("no student was accepted, so there was no depth")
        elif not self.rmse < self.constant_rmse:
            found.append("the published depth is not better than the best constant depth")
        for number, entry in enumerate(self.rounds, start=1):
            if entry.accepted and entry.frames_measured < LEAST_FRAMES:
                found.append(
                    f"student {entry.version} of round {number} was measured on "
                    f"{entry.frames_measured} frames only, at least {LEAST_FRAMES} are needed"
                )
        if self.dropped_by_swap:
            found.append(f"{self.dropped_by_swap} frames were dropped by a swap")
        for before, after in pairwise(self.rounds):
            if after.accepted and after.rmse > before.rmse * (1 + NOISE):
                found.append(
                    f"student {after.version} made the stream worse: "
                    f"{before.rmse:.3f} -> {after.rmse:.3f} m"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; what was not measured is null."""
        values = _without_nan({**asdict(self), "failures": self.failures})
        assert isinstance(values, dict)
        return values


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: _without_nan(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return value


def number_text(value: float, digits: int = 3) -> str:
    """Return a number for people, `-` where it is not known."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def scored(result: DemoResult, board: Scoreboard) -> DemoResult:
    """Add what was measured on the stream; a refused round shows the student that stayed."""
    rounds, live = [], ""
    for entry in result.rounds:
        live = entry.version if entry.accepted else live
        score = board.of(live)
        rounds.append(
            replace(
                entry,
                rmse=score.rmse,
                abs_rel=score.abs_rel,
                frames_measured=score.frames,
                rmse_repeated=board.repeated(live),
            )
        )
    last = board.of(live)
    return replace(
        result,
        rounds=rounds,
        rmse=last.rmse,
        abs_rel=last.abs_rel,
        constant_rmse=last.constant_rmse,
        frames_measured=last.frames,
    )


def write_sheet(path: Path, result: DemoResult, board: Scoreboard) -> Path | None:
    """Draw image, depth after each round, truth and error; None where there was no depth."""
    accepted = [r for r in result.rounds if r.accepted]
    if not accepted:
        return None
    last = board.of(accepted[-1].version).views
    first = board.of(accepted[0].version).views
    rows = []
    for old, new in matching_views(first, last, _ROWS):
        second = new.depth if len(accepted) > 1 else None
        depths = [old.depth, second] if len(accepted) > 1 else [new.depth]
        rows.append(Row(new.image, depths, new.truth))
    if not rows:
        return None
    columns = [f"depth, student {r.version}" for r in accepted]
    refused = len(result.rounds) - len(accepted)
    title = f"tiekd_ros demo: {result.scene}"
    subtitle = (
        f"published depth: RMSE {number_text(result.rmse)} m, "
        f"AbsRel {number_text(result.abs_rel)} "
        f"(best constant: {number_text(result.constant_rmse)} m)"
    )
    subtitle += f"; {refused} candidate(s) refused" if refused else ""
    sheet = contact_sheet(rows, columns, title, subtitle)
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    return path


def print_result(console: Console, result: DemoResult, output: Path, sheet: Path | None) -> None:
    """Print the table and where the files are."""
    table = Table(title=f"Published depth against the truth, {result.scene}", box=SIMPLE)
    names = ("round", "frames", "verdict", "held-out [m]", "RMSE [m]", "AbsRel", "to live")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("constant", "", "", "", number_text(result.constant_rmse), "", "")
    for number, entry in enumerate(result.rounds, start=1):
        before = entry.held_out_before.get("rmse", math.nan)
        after = entry.held_out_after.get("rmse", math.nan)
        live = entry.trigger_to_live_seconds
        table.add_row(
            str(number),
            f"{entry.frames} + {entry.held_out_frames}",
            "accepted" if entry.accepted else "refused",
            f"{number_text(before, 2)} > {number_text(after, 2)}",
            number_text(entry.rmse),
            number_text(entry.abs_rel),
            "" if live is None else f"{live:.0f} s",
        )
    console.print(table)
    share = result.rmse / result.constant_rmse if result.constant_rmse else math.nan
    console.print(
        f"RMSE is {number_text(share, 2)} of the best constant's; "
        f"{result.frames_published} depth images published, "
        f"{result.dropped_by_swap} dropped by swaps; {result.seconds:.0f} s in all."
    )
    if sheet is not None:
        console.print(f"picture:  {sheet}", soft_wrap=True, highlight=False)
    console.print(f"numbers:  {output / 'demo.json'}", soft_wrap=True, highlight=False)
    console.print(f"state:    {result.state}", soft_wrap=True, highlight=False)
    for failure in result.failures:
        console.print(f"[red]failed:[/red] {failure}", soft_wrap=True)
