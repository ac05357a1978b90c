"""Frame logs of noise, other processes that write into them, and labellers of such a log."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import decode_depth_png, decode_image
from tiekd_ros.framelog import (
    FrameLogSettings,
    FrameStore,
    Label,
    Labeller,
    LabellerSettings,
    LoggedFrame,
    Observation,
)

S = 1_000_000_000
EAGER = FrameLogSettings(min_interval_s=0.0, guard_share=0.0, lock_timeout_s=0.2)
DEPTH = np.ones((60, 80), np.float32)

CHILD = """
import sys
from pathlib import Path
import numpy as np
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Label, Observation
path, seed, count, megabytes = Path(sys.argv[1]), *map(int, sys.argv[2:])
settings = FrameLogSettings(
    min_interval_s=0.0, guard_share=0.0, max_bytes_mb=megabytes, lock_timeout_s=10.0
)
rng = np.random.default_rng(seed)
depth = rng.uniform(1, 9, (60, 80)).astype(np.float32)
store = FrameStore(path, settings)
for k in range(count):
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    frame_id = store.add(Observation(image, k * 10**8, "cam")).frame_id
    print("added", frame_id, flush=True)
    store.put_label(frame_id, Label(depth, "teacher", str(seed)))
    print("labelled", frame_id, flush=True)
"""


def view(seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return pixels.repeat(5, 0).repeat(5, 1)


def add(store: FrameStore, seed: int) -> int | None:
    return store.add(Observation(view(seed), seed * S, "cam")).frame_id


def start_child(path: Path, seed: int, count: int, megabytes: int = 100) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(seed), str(count), str(megabytes)],
        stdout=subprocess.PIPE,
        text=True,
    )


def check_whole(path: Path) -> dict[int, bool]:
    """Return which stored ids have a label, after checking that each row is whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute(
            "SELECT id, state, jpeg, depth FROM frames "
            "LEFT JOIN images ON images.frame_id = id LEFT JOIN labels ON labels.frame_id = id"
        ).fetchall()
    for _, state, jpeg, depth in rows:
        assert decode_image(jpeg).shape == (120, 160, 3)
        assert (state == "labelled") == (depth is not None)
        assert depth is None or decode_depth_png(depth).shape == (60, 80)
    return {frame_id: depth is not None for frame_id, _, _, depth in rows}


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
