"""What the demo tells people while it runs: a progress bar, or plain lines."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

_LINE_EVERY_S = 15.0


class Show:
    """One step at a time, each with a share done and a remark.

    Args:
        console: where to write.
        headless: plain lines for a log, instead of a bar that moves.
    """

    def __init__(self, console: Console, headless: bool) -> None:
        self._console = console
        self._start = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._spoken = 0.0
        self._step = ""
        if not headless:
            self._progress = Progress(
                TextColumn("{task.description}", justify="left"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[remark]}"),
                TimeElapsedColumn(),
                console=console,
            )

    def __enter__(self) -> Show:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def step(self, title: str) -> None:
        """Begin a step."""
        self._step, self._spoken = title, time.monotonic()
        if self._progress is None:
            self._line(title)
            return
        if self._task is not None:
            self._progress.update(self._task, completed=1.0)
        self._task = self._progress.add_task(title, total=1.0, remark="")

    def update(self, share: float, remark: str) -> None:
        """Say how far the step is."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=min(share, 1.0), remark=remark)
        elif time.monotonic() - self._spoken >= _LINE_EVERY_S:
            self._spoken = time.monotonic()
            self._line(f"  {self._step}: {remark}")

    def done(self, remark: str) -> None:
        """End the step with its result."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=1.0, remark=remark)
        else:
            self._line(f"  {remark}")

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"{seconds:5.0f} s  {text}", highlight=False, soft_wrap=True)
