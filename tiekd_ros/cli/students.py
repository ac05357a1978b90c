"""`tiekd students`, the versions of a state folder, and `tiekd distill`, which makes a new one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tiekd_ros.cli.options import AsJson, State, console, read_groups, read_size
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder

if TYPE_CHECKING:
    from tiekd_ros.rounds.round_log import RoundRecord
    from tiekd_ros.student.registry import StudentRegistry


class RoundFailedError(TiekdError):
    """A round that came to no verdict; `record` is what is known of it."""

    def __init__(self, record: RoundRecord) -> None:
        super().__init__(f"round {record.number} {record.state}: {record.reason}")
        self.record = record


def distill_once(state: StateFolder, settings: str, shown_on: Console | None) -> RoundRecord:
    """Run one round on a state folder and return its record.

    Args:
        state: an existing state folder with labelled frames.
        settings: JSON, {group: {name: value}}.
        shown_on: where to show progress; None = nowhere.

    Raises:
        RoundFailedError: it came to no verdict.
        TiekdError: no frame log, bad settings, too few frames, or another round is running.
    """
    from tiekd_ros.framelog import FrameStore
    from tiekd_ros.rounds.plan import RoundPlan
    from tiekd_ros.rounds.round_log import RoundState
    from tiekd_ros.rounds.runner import RoundRunner

    if not state.frames.exists():
        raise TiekdError(f"there is no frame log {state.frames}; give the folder with --state")
    plan = RoundPlan.from_mapping(read_groups(settings))
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    progress = Progress(*columns, console=shown_on, disable=shown_on is None)
    task = progress.add_task("starting", total=1.0)

    def show(record: RoundRecord) -> None:
        loss = "" if record.loss is None else f", loss {record.loss:.3f}"
        text = f"round {record.number}: {record.stage} {record.step}/{record.steps}{loss}"
        progress.update(task, description=text, completed=record.step / max(record.steps, 1))

    with FrameStore(state.create().frames) as store:
        runner = RoundRunner(state, store, plan, show)
        with progress:
            try:
                record = runner.start()
                runner.wait()
            except KeyboardInterrupt:  # a person's wish: no companion takes the round up again
                with _deaf_to_interrupts():  # a second Ctrl-C does not leave half of it undone
                    runner.stop(resumable=False)
                raise
    record = runner.record or record
    if record.state not in (RoundState.PROMOTED, RoundState.REFUSED):
        raise RoundFailedError(record)
    return record


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def distill(
    state: State = "",
    settings: Annotated[
        str,
        typer.Option(help='Settings as JSON, for example {"train": {"iterations": 500}}.'),
    ] = "{}",
    as_json: AsJson = False,
) -> None:
    """Run one distillation round offline; promote the student if it is better.

    Needs no ROS: labelled frames in, a judged student out, as the companion does it.
    """
    failure = None
    try:
        record = distill_once(StateFolder.resolve(state), settings, None if as_json else console)
    except RoundFailedError as error:
        record, failure = error.record, error
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(record), indent=2))
    if failure is not None:
        raise failure
    if not as_json:
        console.print(f"round {record.number} {record.state}: {record.reason}", highlight=False)


students = typer.Typer(help="The student versions of a state folder.", no_args_is_help=True)


@students.command("list")
def students_list(state: State = "", as_json: AsJson = False) -> None:
    """List the versions, the live one marked; `show` tells more of one."""
    registry = _registry(state)
    live = registry.live()
    cards = []
    for version in registry.versions():
        try:
            cards.append(registry.card(version))
        except TiekdError as error:  # one damaged version must not hide the others
            sys.stderr.write(f"{error}\n")
    if as_json:
        values = [{**json.loads(c.to_json()), "live": c.version == live} for c in cards]
        typer.echo(json.dumps(values, indent=2))
        return
    heads = ("version", "verdict", "frames", r"RMSE \[m]", "AbsRel", "created (UTC)")
    table = Table("", *heads)
    for card in cards:
        after = card.scores.get("after", {})
        table.add_row(
            "live" if card.version == live else "",
            card.version,
            card.status,
            str(card.frames.get("train", "")),
            f"{after['rmse']:.3f}" if "rmse" in after else "",
            f"{after['abs_rel']:.3f}" if "abs_rel" in after else "",
            card.created[:16].replace("T", " "),
        )
    console.print(table if cards else "no student yet: run a distillation round first")


@students.command("show")
def students_show(version: str, state: State = "", as_json: AsJson = False) -> None:
    """Print a version's card: where it comes from, and what the gate saw."""
    registry = _registry(state)
    card = registry.card(version)
    if as_json:
        typer.echo(card.to_json())
        return
    live = "live, " if registry.live() == card.version else ""
    size, frames = card.input_size, ", ".join(f"{n} {name}" for name, n in card.frames.items())
    lines = {
        card.version: f"{live}{card.status}: {card.reason or 'no gate has judged it'}",
        "network": f"{card.architecture}, input {size.height}x{size.width}, {card.bins.count} bins "
        f"from {card.bins.min_depth_m:g} to {card.bins.max_depth_m:g} m",
        "made": f"{card.created[:16].replace('T', ' ')} UTC, round {card.round or '-'}, from "
        f"{card.parent or card.training.get('start', 'elsewhere')}",
        "learnt from": f"{frames or '-'} frames; teacher: {card.teacher or '-'}",
    }
    for name, text in lines.items():
        console.print(f"{name:>12}  {text}", highlight=False, markup=False, soft_wrap=True)
    if checks := card.scores.get("checks"):
        console.print(_checks_table(checks))
    if scores := card.scores.get("confidence"):
        gaps = ", ".join(
            f"{100 * (float(name[-3:]) + gap):.0f} % of those that say {name[-3:]}"
            for name, gap in scores.items()
            if name.startswith("gap at")
        )
        console.print(
            f"confidence: {scores['mean']:.2f} in the mean, {scores['right']:.2f} of the held-out "
            f"pixels are right{gaps and ': ' + gaps}",
            highlight=False,
            soft_wrap=True,
        )


def _checks_table(checks: list[dict[str, Any]]) -> Table:
    """Return the gate's checks of a candidate against its incumbent."""
    table = Table(box=None, padding=(0, 1, 0, 0))
    for head in ("held-out frames", "before > after", "better", "interval", "least", ""):
        table.add_column(head, no_wrap=True)
    for check in checks:
        low, high = check["interval"]
        table.add_row(
            check["name"],
            f"{check['before']:.3f} > {check['after']:.3f}",
            f"{check['change']:+.1%}",
            f"{low:+.0%} to {high:+.0%}",
            f"{check['allowed']:+.1%}",
            "" if check["passed"] else "refused",
        )
    return table


@students.command("promote")
def students_promote(
    version: str,
    state: State = "",
    force: Annotated[bool, typer.Option("--force", help="Even if the gate refused it.")] = False,
) -> None:
    """Make a version the live one; a running companion announces it within a second or two."""
    _registry(state).promote(version, force=force)
    typer.echo(f"student {version} is live")


@students.command("rollback")
def students_rollback(state: State = "") -> None:
    """Go back to the version that was live before."""
    registry = _registry(state)
    if not registry.versions():
        raise TiekdError(
            f"there is no student in {registry.root} yet: run a distillation round first"
        )
    version = registry.rollback()
    typer.echo(f"student {version} is live")


@students.command("import")
def students_import(
    checkpoint: Annotated[Path, typer.Argument(help="The published .pth file.")],
    arch: Annotated[
        str,
        typer.Option(
            help="mobilenetv2, resnet18 or resnet50; with -regression behind it for a Res-KD or "
            "baseline student."
        ),
    ],
    bins: Annotated[
        str,
        typer.Option(
            help="kitti (257 bins, 80 m) or nyu (49 bins, 10 m); a regression head needs it.",
            show_default="by the file",
        ),
    ] = "",
    input_size: Annotated[
        str,
        typer.Option(
            help="Network input, multiples of 32: smaller is faster.",
            metavar="HxW",
            show_default="352x1216 or 480x640",
        ),
    ] = "",
    promote: Annotated[
        bool, typer.Option("--promote", help="Make it live at once, though no gate judged it here.")
    ] = False,
    state: State = "",
) -> None:
    """Import a published TIE-KD checkpoint (mmcv layout) as a new version.

    For example: tiekd students import tiekd_r18.pth --arch resnet18

    Every weight is checked by name and shape; a file that would run code is refused. The
    version is a candidate: it goes live when you promote it, not before. The published
    networks are heavy (about 200 GMAC at 480x640): plan a GPU, or a small --input-size.
    """
    size = read_size(input_size)

    from tiekd_ros.student.architecture import InputSize
    from tiekd_ros.student.importing import import_student
    from tiekd_ros.student.registry import StudentRegistry

    own_size = InputSize(**size) if size else None
    student = import_student(checkpoint, arch, bins=bins, input_size=own_size)
    registry = StudentRegistry(StateFolder.resolve(state).create().students)
    card = registry.add(student)
    used = card.input_size
    typer.echo(
        f"student {card.version} is {arch} with {card.bins.count} bins up to "
        f"{card.bins.max_depth_m:g} m, input {used.height}x{used.width}, from {checkpoint.name}"
    )
    if promote:
        registry.promote(card.version)
        typer.echo(f"student {card.version} is live, as you asked; no gate has judged it")
    else:
        typer.echo(
            "it is a candidate that no gate has judged here, and not live; "
            f"tiekd students promote {card.version} makes it live"
        )


def _registry(state: str) -> StudentRegistry:
    """Return the registry of a state folder that exists."""
    from tiekd_ros.student.registry import StudentRegistry

    folder = StateFolder.resolve(state)
    if not folder.root.is_dir():
        raise TiekdError(f"there is no state folder {folder.root}; give it with --state")
    return StudentRegistry(folder.students)
