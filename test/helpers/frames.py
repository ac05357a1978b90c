"""Small frame logs with real pictures and depth, and a plan for rounds of a few seconds."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from helpers.students import FASTEST
from tiekd_ros.core.images import decode_depth_png, encode_depth_png
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Label, Observation
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.rounds.plan import RoundPlan
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.networks import DEFAULT_ARCHITECTURE
from tiekd_ros.worlds import IndoorWorld, WorldSettings, WorldView

WIDTH, HEIGHT = 96, 72
SIZE = InputSize(64, 96)
"""The network's input for these frames with 4096 pixels."""
FROM_BASE = {"architecture": DEFAULT_ARCHITECTURE, "start": "base", "pixels": 12_288}
"""Settings of a first student that starts from the base, at a size at which it sees something."""

_S = 10**9
_STEP_NS = 2 * _S
_EVERYTHING = FrameLogSettings(
    min_interval_s=0.0, min_sharpness=0.0, min_novelty=0.0, guard_share=0.0, block_s=6.0,
    held_out_every=2,
)  # fmt: skip


@lru_cache(maxsize=1)
def views() -> tuple[WorldView, ...]:
    """Return 24 views of the synthetic world, 96x72, 2 s apart along the camera's walk."""
    return more_views(24)


def more_views(count: int, first: int = 0) -> tuple[WorldView, ...]:
    """Return so many views of that walk, from the one with this number on."""
    world = IndoorWorld(WorldSettings(seed=1))
    numbers = range(first, first + count)
    return tuple(world.render(k * _STEP_NS, WIDTH, HEIGHT) for k in numbers)


def samples(count: int = 24) -> list[Sample]:
    """Return the views as training samples at the network's size."""
    camera = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
    return [fit_sample(v.image, v.depth, camera, SIZE) for v in views()[:count]]


def fill_store(path: Path, seen: Sequence[WorldView] | None = None, first: int = 0) -> None:
    """Make a frame log, or add to it, whose frames are all labelled with their exact depth.

    Of the default 24 views, 12 are held out. `first` is the number of the first view.
    """
    with FrameStore(path, _EVERYTHING) as store:
        for number, view in enumerate(views() if seen is None else seen, start=first):
            camera = IndoorWorld.default_intrinsics(WIDTH, HEIGHT)
            seen_at = (number + 1) * _STEP_NS
            frame_id = store.add(Observation(view.image, seen_at, "camera", camera)).frame_id
            assert frame_id is not None
            store.put_label(frame_id, Label(view.depth, "exact", "1"))


def stretch_labels(path: Path, factor: float = 1.5) -> None:
    """Make all labelled depth of a frame log larger, so that a student of before is wrong."""
    with closing(sqlite3.connect(path)) as connection, connection:
        for frame_id, png in connection.execute("SELECT frame_id, depth FROM labels").fetchall():
            depth = encode_depth_png(np.float32(factor) * decode_depth_png(png))
            connection.execute("UPDATE labels SET depth = ? WHERE frame_id = ?", (depth, frame_id))


def filled_state(root: Path) -> StateFolder:
    """Return a state folder with a frame log of 24 labelled frames and nothing else."""
    state = StateFolder(root).create()
    fill_store(state.frames)
    return state


def small_settings(**groups: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return settings of a round that takes a few seconds and accepts what it trained.

    Args:
        groups: settings by group that replace these.
    """
    small: dict[str, dict[str, Any]] = {
        "distill": {"min_frames": 8, "min_held_out": 2},
        "student": {"architecture": FASTEST, "pixels": 4096, "bins": 33, "start": "random"},
        "train": {"iterations": 25, "learning_rate": 0.015, "threads": 1, "device": "cpu"},
        "augment": {"zoom": 1.0},
        "gate": {
            "first_margin": 1.0, "min_gain": 0.0, "confidence_level": 0.0,
            "max_loss": 10.0, "max_detail_loss": 10.0,
        },
    }  # fmt: skip
    for name, values in groups.items():
        small[name] = {**small.get(name, {}), **values}
    return small


def small_plan(**groups: dict[str, Any]) -> RoundPlan:
    """Return `small_settings` as a plan."""
    return RoundPlan.from_mapping(small_settings(**groups))
