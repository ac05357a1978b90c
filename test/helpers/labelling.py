"""A frame log of pictures that wait, a teacher of the test's own, and labellers between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from helpers.stores import S, view
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.framelog import (
    FrameLogSettings,
    FrameStore,
    Label,
    Labeller,
    LabellerSettings,
    LoggedFrame,
    Observation,
)

QUICK = LabellerSettings(in_flight=2, poll_s=30.0, retry_s=0.02, max_retry_s=0.05)

Ask: TypeAlias = Callable[[LoggedFrame], Label]


class TeacherDownError(TiekdError):
    """What a teacher that is away looks like to a labeller."""


def open_log(folder: Path) -> FrameStore:
    """Open an empty frame log without guard times; the caller closes it."""
    return FrameStore(folder / "frames.sqlite3", FrameLogSettings(guard_share=0.0))


def log(store: FrameStore, *seeds: int) -> None:
    """Log the views of these seeds, one a second; all of them are kept."""
    for seed in seeds:
        assert store.add(Observation(view(seed), seed * S, "cam")).kept


def answer(frame: LoggedFrame) -> Label:
    """Label a frame with as many metres as its id says."""
    return Label(np.full((6, 8), float(frame.id), np.float32), "fake", "1")


@contextmanager
def labellers(store: FrameStore) -> Iterator[Callable[..., Labeller]]:
    """Yield a function that starts a labeller of this log; all are stopped afterwards."""
    started: list[Labeller] = []

    def start(ask: Ask, settings: LabellerSettings = QUICK) -> Labeller:
        labeller = Labeller(store, ask, settings)
        started.append(labeller)
        labeller.start()
        return labeller

    yield start
    for labeller in started:
        labeller.stop(2.0)
