"""`tiekd distill`: one round from the command line; what needs torch is imported when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tiekd_ros.cli.options import AsJson, State
from tiekd_ros.cli.options import console as terminal
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.state import StateFolder

if TYPE_CHECKING:
    from tiekd_ros.rounds.round_log import RoundRecord


class RoundFailedError(TiekdError):
    """A round that came to no verdict; `record` is what is known of it."""

    def __init__(self, record: RoundRecord) -> None:
        super().__init__(f"round {record.number} {record.state}: {record.reason}")
        self.record = record


def distill_once(state: StateFolder, settings: str, console: Console | None) -> RoundRecord:
    """Run one round on a state folder and return its record.

    Args:
        state: an existing state folder with labelled frames.
        settings: JSON, {group: {name: value}}.
        console: where to show progress; None = nowhere.

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
    try:
        plan = RoundPlan.from_mapping(json.loads(settings))
    except (json.JSONDecodeError, TypeError, AttributeError) as error:
        raise InvalidSettingError(
            f'settings must be JSON like {{"train": {{"iterations": 500}}}}, got {settings!r}'
        ) from error
    progress = _progress(console)
    task = progress.add_task("starting", total=1.0)

    def show(record: RoundRecord) -> None:
        loss = "" if record.loss is None else f", loss {record.loss:.3f}"
        text = f"round {record.number}: {record.stage} {record.step}/{record.steps}{loss}"
        progress.update(task, description=text, completed=record.step / max(record.steps, 1))

    with FrameStore(state.create().frames) as store:
        runner = RoundRunner(state, store, plan, show)
        with progress if console is not None else contextlib.nullcontext():
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
    if console is not None:
        console.print(f"round {record.number} {record.state}: {record.reason}", highlight=False)
    return record


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _progress(console: Console | None) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


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
    folder = StateFolder.resolve(state)
    try:
        record = distill_once(folder, settings, None if as_json else terminal)
    except RoundFailedError as error:
        if as_json:
            typer.echo(json.dumps(dataclasses.asdict(error.record), indent=2))
        raise
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(record), indent=2))
