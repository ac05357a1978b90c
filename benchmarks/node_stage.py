"""The stage of node.py and distill.py: a state folder with frames, and the nodes on it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import (
    Child,
    Program,
    node_command,
    prepare_environment,
    stop_children,
)
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Label, Observation
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.base_student import start_from_base
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard, StudentStatus
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.worlds import IndoorWorld, WorldSettings

NAMESPACE = "/bench"
ECHO = "/bench_echo"
WIDTH, HEIGHT = 640, 480
_HELD_OUT_EVERY = 4
_PICTURES = 16
_PERIOD_S = 60.0
_SECOND = 1_000_000_000
_SAID = 2000  # characters of a node's log that are shown where it ended


class Made(NamedTuple):
    """The files to measure on."""

    state: StateFolder
    pictures: Path  # of the camera: a .npy file, (N, 480, 640, 3) uint8
    versions: list[str]  # two accepted students; the first is live


@contextmanager
def own_domain() -> Iterator[None]:
    """Set this process and its children apart from other ROS systems, unless the user did.

    A fresh domain each time: in 2 to 5 of 100 cases Fast DDS never matches a process that is
    started again, after one that was killed, with those that lived on.

    Not by LOCALHOST discovery: Fast DDS then takes small transports of its own, with which each
    large image takes 13 ms.
    """
    prepare_environment()
    os.environ.pop("ROS_AUTOMATIC_DISCOVERY_RANGE", None)
    given = "ROS_DOMAIN_ID" in os.environ
    os.environ.setdefault("ROS_DOMAIN_ID", str(secrets.randbelow(101) + 1))
    try:
        yield
    finally:
        if not given:
            del os.environ["ROS_DOMAIN_ID"]


def prepare(root: Path, size: InputSize, labelled: int) -> Made:
    """Make a state folder with two accepted students and so many labelled frames.

    Args:
        root: an empty folder.
        size: the students' input size.
        labelled: frames with the synthetic world's exact depth.
    """
    state = StateFolder(root / "state").create()
    world = IndoorWorld(WorldSettings(period_s=_PERIOD_S))
    pictures = [
        world.render(round(n * _PERIOD_S / _PICTURES * _SECOND), WIDTH, HEIGHT).image
        for n in range(_PICTURES)
    ]
    np.save(root / "pictures.npy", np.stack(pictures))
    step_s = _PERIOD_S / max(labelled, 1)
    stamps = [round((number + 0.5) * step_s * _SECOND) for number in range(labelled)]
    # Half the camera's size: more than the network takes in, and quicker to draw.
    fill_frame_log(state, world, stamps, (WIDTH // 2, HEIGHT // 2), max(0.5, 4 * step_s))
    versions = _register(StudentRegistry(state.students), size)
    return Made(state, root / "pictures.npy", versions)


def fill_frame_log(
    state: StateFolder,
    world: IndoorWorld,
    stamps: Sequence[int],
    size: tuple[int, int],
    block_s: float,
    train_frames: int | None = None,
) -> int:
    """Log frames of a camera's walk, every one kept, and label them with the exact depth.

    Args:
        state: where the log is.
        world: what the camera sees.
        stamps: of the frames, nanoseconds, > 0.
        size: (width, height) of the images in pixels.
        block_s: seconds of a block of the split by time.
        train_frames: ends as soon as so many frames are there to train on.

    Returns:
        The number of frames held out.
    """
    settings = FrameLogSettings(
        min_interval_s=0.0, min_novelty=0.0, identical_distance=0.0, guard_share=0.0,
        block_s=block_s, held_out_every=_HELD_OUT_EVERY,
    )  # fmt: skip
    camera = IndoorWorld.default_intrinsics(*size)
    with FrameStore(state.frames, settings) as store:
        for stamp in stamps:
            view = world.render(stamp, *size, camera)
            kept = store.add(Observation(view.image, stamp, "camera", camera))
            if kept.frame_id is not None:
                store.put_label(kept.frame_id, Label(view.depth, "exact", "1"))
            if len(store.labelled_ids("train")) == train_frames:
                break
        return len(store.labelled_ids("held_out"))


def _register(registry: StudentRegistry, size: InputSize) -> list[str]:
    """Store the base student twice, its second head a little off, and let the first go live."""
    focal = IndoorWorld.default_intrinsics(size.width, size.height)
    bins = DepthBins()
    versions = []
    for shift in (0.0, 0.01):
        network = start_from_base(bins, size, (focal.fx * focal.fy) ** 0.5)
        network.head.bias.data += shift * bins.centres()
        status = StudentStatus.ACCEPTED
        card = StudentCard(bins, size, focal_px=(focal.fx, focal.fy), status=status)
        versions.append(registry.add(Student(card, network)).version)
    registry.promote(versions[0])
    return versions


@contextmanager
def nodes(*wanted: tuple[str, dict[str, object]], logs: Path) -> Iterator[list[Child]]:
    """Run nodes of the package, each named with its parameters."""
    started: list[Child] = []
    try:
        for name, parameters in wanted:
            arguments = ["-r", f"__ns:={NAMESPACE}"]
            for key, value in parameters.items():
                arguments += ["-p", f"{key}:={value}"]
            program = Program(name, node_command(name, arguments), logs / f"{name}.log")
            started.append(Child(program))
        yield started
    finally:
        stop_children(started)


def check_running(started: Sequence[Child]) -> None:
    """Do nothing while all nodes run.

    Raises:
        TiekdError: one has ended; the message has the end of its log.
    """
    for child in started:
        if child.ended:
            said = child.program.log.read_text(errors="replace")[-_SAID:]
            raise TiekdError(f"{child.program.name} {child.ended}:\n{said}")
