"""A training's progress on the terminal."""

from __future__ import annotations

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiekd_ros.distillation.training.loop import TrainingProgress

_LINE_EVERY_S = 30.0  # where nobody looks at a live bar


class TrainingView:
    """A bar on a terminal, now and then a line elsewhere, nothing where it is not shown."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("starting", total=None)
        self._said_at = 0.0

    def __enter__(self) -> TrainingView:
        """Begin to show."""
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the bar."""
        self._bar.stop()

    def note(self, line: str) -> None:
        """Show a line."""
        self._console.print(line, highlight=False, markup=False)

    def progress(self, done: TrainingProgress) -> None:
        """Show where the training is."""
        loss = "skipped" if math.isnan(done.loss) else f"loss {done.loss:.4f}"
        scores = "".join(
            f", {name} {done.scores[name]:.4f}"
            for name in ("abs_rel", "rmse", "abs_rel_T")
            if name in done.scores
        )
        text = f"epoch {done.epoch}: {loss}{scores}"
        self._bar.update(self._task, description=text, completed=done.step, total=done.steps)
        now = time.monotonic()
        last = done.step == done.steps
        if not self._console.is_terminal and (last or now - self._said_at > _LINE_EVERY_S):
            self._said_at = now
            self.note(f"{done.step}/{done.steps} {text}")
