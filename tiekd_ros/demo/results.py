"""The demo's result: numbers for a program, a table and a picture for a person."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from tiekd_ros.demo.score import Scoreboard, matching_frames
from tiekd_ros.report.pictures import SheetRow, contact_sheet
from tiekd_ros.rounds.round_log import RoundKind

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
    kind: RoundKind = RoundKind.TRAINING
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
            accepted=status["state"] == "promoted",
            reason=status["reason"],
            version=status["version"],
            held_out_before=scores("before"),
            held_out_after=scores("after"),
            baseline=status["baseline"],
            frames=int(status["train_frames"]),
            held_out_frames=int(status["held_out_frames"]),
            train_seconds=float(status["train_seconds"]),
            trigger_to_live_seconds=live,
            kind=RoundKind(status["kind"]),
        )


@dataclass(frozen=True)
class DemoResult:
    """The contents of `demo.json`; depths in metres."""

    scene: str
    rounds: list[RoundResult]
    """The calibrated base student, where its depth was measured, and the rounds that trained."""
    frames_published: int
    dropped_by_swap: int
    student: str | None
    state: str
    first_depth_seconds: float | None = None
    """From the demo's start to the first depth of any student."""
    rmse: float = math.nan
    abs_rel: float = math.nan
    constant_rmse: float = math.nan
    frames_measured: int = 0
    seconds: float = 0.0

    @property
    def failures(self) -> list[str]:
        """The reasons why the demo failed; empty where it succeeded."""
        found = []
        if not any(entry.accepted for entry in self.rounds):
            found.append("no student was accepted, so there was no depth")
        elif not self.rmse < self.constant_rmse:
            found.append("the published depth is not better than the best constant depth")
        found += [
            f"student {entry.version} was measured on {entry.frames_measured} frames only, at "
            f"least {LEAST_FRAMES} are needed"
            for entry in self.rounds
            if entry.accepted and entry.frames_measured < LEAST_FRAMES
        ]
        if self.dropped_by_swap:
            found.append(f"{self.dropped_by_swap} frames were dropped by a swap")
        # the calibrated base may have shown less than a whole turn before round 1 took its place
        trained = [entry for entry in self.rounds if entry.kind is RoundKind.TRAINING]
        for before, after in pairwise(trained):
            if after.accepted and after.rmse > before.rmse * (1 + NOISE):
                found.append(
                    f"student {after.version} made the stream worse: "
                    f"{before.rmse:.3f} -> {after.rmse:.3f} m"
                )
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; a number that was not measured is null."""
        return dict(_without_nan({**asdict(self), "failures": self.failures}))


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
    """Add the stream's scores; a refused round has those of the student that stayed."""
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
    """Draw image, depth of the first and the last student, truth and error.

    None where there was no depth.
    """
    accepted = [r for r in result.rounds if r.accepted]
    if not accepted:
        return None
    shown = [accepted[0].version, *(r.version for r in accepted[1:][-1:])]
    first, last = board.of(shown[0]).kept, board.of(shown[-1]).kept
    rows = []
    for old, new in matching_frames(first, last, _ROWS):
        depths = [old.depth, new.depth][-len(shown) :]
        rows.append(SheetRow(new.image, depths, new.truth))
    if not rows:
        return None
    columns = [f"depth, student {version}" for version in shown]
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


def _after(result: DemoResult) -> str:
    seconds = result.first_depth_seconds
    return "never" if seconds is None else f"after {seconds:.0f} s"


def print_result(console: Console, result: DemoResult, output: Path, sheet: Path | None) -> None:
    """Print the table and where the files are."""
    table = Table(title=f"Published depth against the truth, {result.scene}", box=SIMPLE)
    names = ("round", "frames", "verdict", "held-out [m]", "RMSE [m]", "AbsRel", "to live")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("constant", "", "", "", number_text(result.constant_rmse), "", "")
    numbers = itertools.count(1)
    for entry in result.rounds:
        trained = entry.kind is RoundKind.TRAINING
        before = entry.held_out_before.get("rmse", math.nan)
        after = entry.held_out_after.get("rmse", math.nan)
        live = entry.trigger_to_live_seconds
        table.add_row(
            str(next(numbers)) if trained else "base",
            f"{entry.frames} + {entry.held_out_frames}" if trained else str(entry.frames),
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
        f"{result.frames_published} depth images published, the first {_after(result)}, "
        f"{result.dropped_by_swap} dropped by swaps; {result.seconds:.0f} s in all."
    )
    if sheet is not None:
        console.print(f"picture:  {sheet}", soft_wrap=True, highlight=False)
    console.print(f"numbers:  {output / 'demo.json'}", soft_wrap=True, highlight=False)
    console.print(f"state:    {result.state}", soft_wrap=True, highlight=False)
    for failure in result.failures:
        console.print(f"[red]failed:[/red] {failure}", soft_wrap=True)
