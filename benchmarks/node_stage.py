"""What `node.py` measures on: a state folder made for it, and the processes that run on it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Observation
from tiekd_ros.student import DepthBins, InputSize, Student, StudentCard, StudentRegistry
from tiekd_ros.student.base_student import start_from_base
from tiekd_ros.worlds import IndoorWorld, WorldSettings

NAMESPACE = "/bench"
ECHO = "/bench_echo"
WIDTH, HEIGHT = 640, 480
_HELD_OUT_EVERY = 4
_PICTURES = 16
_PERIOD_S = 60.0
_SECOND = 1_000_000_000


class Made(NamedTuple):
    """What was made to measure on."""

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
    """Make a state folder with two accepted students and labelled frames.

    Args:
        root: an empty folder.
        size: the students' input size.
        labelled: how many frames to label with the synthetic world's exact depth.
    """
    state = StateFolder(root / "state").create()
    world = IndoorWorld(WorldSettings(period_s=_PERIOD_S))
    pictures = [
        world.render(round(n * _PERIOD_S / _PICTURES * _SECOND), WIDTH, HEIGHT).image
        for n in range(_PICTURES)
    ]
    np.save(root / "pictures.npy", np.stack(pictures))
    _label_frames(state, world, labelled)
    versions = _register(StudentRegistry(state.students), size)
    return Made(state, root / "pictures.npy", versions)


def _label_frames(state: StateFolder, world: IndoorWorld, count: int) -> None:
    width, height = WIDTH // 2, HEIGHT // 2  # more than the network takes in; quicker to draw
    step_s = _PERIOD_S / max(count, 1)
    settings = FrameLogSettings(
        min_interval_s=0.0,
        min_novelty=0.0,
        identical_distance=0.0,
        guard_share=0.0,
        block_s=max(0.5, 4 * step_s),
        held_out_every=_HELD_OUT_EVERY,
    )
    camera = IndoorWorld.default_intrinsics(width, height)
    with FrameStore(state.frames, settings) as store:
        for number in range(count):
            stamp = round((number + 0.5) * step_s * _SECOND)
            view = world.render(stamp, width, height)
            kept = store.add(Observation(view.image, stamp, "camera", camera))
            if kept.frame_id is not None:
                store.put_label(kept.frame_id, view.depth, "exact", "1")


def _register(registry: StudentRegistry, size: InputSize) -> list[str]:
    """Store the base student twice, its second head a little off, and let the first go live."""
    focal = IndoorWorld.default_intrinsics(size.width, size.height)
    bins = DepthBins()
    versions = []
    for shift in (0.0, 0.01):
        network = start_from_base(bins, size, (focal.fx * focal.fy) ** 0.5)
        network.head.bias.data += shift * bins.centres()
        card = StudentCard(bins, size, focal_px=(focal.fx, focal.fy), status="accepted")
        versions.append(registry.add(Student(card, network)).version)
    registry.promote(versions[0])
    return versions


class Helper:
    """One of `node_children.py`'s processes."""

    def __init__(self, kind: str, *arguments: object) -> None:
        script = Path(__file__).with_name("node_children.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), kind, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: dict[str, Any] = {}

    def await_ready(self) -> None:
        """Wait until it is at work; `said` then has what it told of itself."""
        while "ready" not in self.said:
            self.said |= self._answer()

    def ask(self, command: str) -> dict[str, Any]:
        """Tell it something and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise TiekdError(f"{self._process.args} ended with code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def helpers(*wanted: tuple[object, ...]) -> Iterator[list[Helper]]:
    """Run helpers side by side, each named with its arguments."""
    started: list[Helper] = []
    try:
        for kind, *arguments in wanted:
            started.append(Helper(str(kind), *arguments))
        for helper in started:
            helper.await_ready()
        yield started
    finally:
        for helper in started:
            helper.close()


@contextmanager
def nodes(
    *wanted: tuple[str, dict[str, object]], logs: Path, namespace: str = NAMESPACE
) -> Iterator[list[Child]]:
    """Run nodes of the package, each named with its parameters."""
    started: list[Child] = []
    try:
        for name, parameters in wanted:
            arguments = ["-r", f"__ns:={namespace}"]
            for key, value in parameters.items():
                arguments += ["-p", f"{key}:={value}"]
            program = Program(name, node_command(name, arguments), logs / f"{name}.log")
            started.append(Child(program))
        yield started
    finally:
        stop_children(started)
