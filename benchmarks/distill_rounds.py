"""Rounds for `distill.py`: their labelled frames, the nodes that run them, and a client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path
from typing import NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus
from node_stage import nodes
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.core.supervisor import Child
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Observation
from tiekd_ros.nodes.common import conversions, qos
from tiekd_ros.nodes.probe.observer import BackgroundNode
from tiekd_ros.worlds import IndoorWorld, WorldSettings

ITERATIONS = 200
STAGES = ("start", "loading", "training", "judging", "storing", "swap")
"""start: until the worker is at work; storing: with promotion; swap: until the first depth."""

_TRAIN_FRAMES = 64
_WIDTH, _HEIGHT = 640, 480
_NAMESPACE = "/bench_distill"
_IMAGES_HZ = 10.0
_SECOND = 1_000_000_000
_SAID = 2000  # characters of a node's log that are shown where it ended
_START_S, _ROUND_S, _LIVE_S = 60.0, 1200.0, 60.0
_SETTINGS = FrameLogSettings(
    min_interval_s=0.0, min_novelty=0.0, identical_distance=0.0, guard_share=0.0,
    block_s=12.0, held_out_every=4,
)  # fmt: skip


class RoundTimes(NamedTuple):
    """One round: seconds by stage and in all, milliseconds of a step, held-out scores.

    What did not come about is NaN: a round that is refused gives no student that goes live.
    """

    verdict: str  # accepted, refused, failed, or what went wrong
    stages: dict[str, float]
    trigger_to_live: float
    step_ms: float
    abs_rel: float
    rmse: float

    @classmethod
    def broken(cls, problem: str) -> RoundTimes:
        """Return a round of which nothing is known but what went wrong."""
        return cls(problem, dict.fromkeys(STAGES, nan), nan, nan, nan, nan)


def prepare(root: Path) -> str:
    """Make a state folder with labelled frames, one a second of a camera's walk.

    Returns:
        How many there are, in words.
    """
    state = StateFolder(root).create()
    world = IndoorWorld(WorldSettings())
    camera = IndoorWorld.default_intrinsics(_WIDTH, _HEIGHT)
    with FrameStore(state.frames, _SETTINGS) as store:
        for second in range(10 * _TRAIN_FRAMES):
            view = world.render(second * _SECOND, _WIDTH, _HEIGHT, camera)
            kept = store.add(Observation(view.image, (second + 1) * _SECOND, "camera", camera))
            if kept.frame_id is not None:
                store.put_label(kept.frame_id, view.depth, "exact", "1")
            if len(store.labelled_ids("train")) == _TRAIN_FRAMES:
                break
        return f"{_TRAIN_FRAMES} + {len(store.labelled_ids('held_out'))} held out"


def time_round(state: Path, parameters: dict[str, object]) -> RoundTimes:
    """Start the nodes on a state folder without a student, call distill, wait for depth.

    Args:
        state: the folder.
        parameters: of companion_node.

    Raises:
        TiekdError: a node ends, no round starts, or something does not come in time.
    """
    companion = {
        "state_dir": state,
        "teacher.url": '""',
        "train.iterations": ITERATIONS,
        "train.device": "cpu",
        **parameters,
    }
    depth = {"state_dir": state, "device": "cpu"}
    wanted = ("companion_node", companion), ("depth_node", depth)
    with nodes(*wanted, logs=state, namespace=_NAMESPACE) as started, _Client(started) as client:
        client.await_nodes()
        return client.run_round()


class _Client(BackgroundNode):
    """Sends images, calls distill, notes when what happened."""

    def __init__(self, nodes: Sequence[Child]) -> None:
        self._children = nodes
        super().__init__("client", _NAMESPACE)
        self._at: dict[str, float] = {}  # what began, when
        self._status: dict[str, str] = {}
        node = self._node
        node.create_subscription(DiagnosticStatus, "distill/status", self._on_status, qos.LATCHED)
        node.create_subscription(Image, "depth", self._on_depth, qos.RELIABLE)
        self._images = node.create_publisher(Image, "image", qos.RELIABLE)
        self._distill = node.create_client(Trigger, "distill")
        self._picture = IndoorWorld(WorldSettings()).render(0, _WIDTH, _HEIGHT).image
        node.create_timer(1 / _IMAGES_HZ, self._send_image)

    def await_nodes(self) -> None:
        """Wait until both nodes are there and ready."""
        self._await(self._distill.service_is_ready, _START_S, "the distill service")
        self._await(lambda: self._images.get_subscription_count() >= 2, _START_S, "both nodes")

    def run_round(self) -> RoundTimes:
        """Call distill and follow the round until there is depth, or it is refused."""
        self._at["start"] = time.monotonic()
        future = self._distill.call_async(Trigger.Request())
        self._await(future.done, _START_S, "the answer of distill")
        answer = future.result()
        if not answer.success:
            raise TiekdError(f"distill: {answer.message}")
        self._await(lambda: self._status.get("stage") == "done", _ROUND_S, "the verdict")
        status = self._status
        verdict = status["state"]
        if verdict == "accepted":
            self._await(lambda: "live" in self._at, _LIVE_S, "depth of the new student")
        elif status.get("reason"):
            verdict += f": {status['reason']}"
        ends = [*STAGES[1:], "live"]
        stages = {s: self._between(s, e) for s, e in zip(STAGES, ends, strict=True)}
        step_ms = 1e3 * float(status.get("train_seconds", nan)) / ITERATIONS
        scores = [float(status.get(f"after.{name}", nan)) for name in ("abs_rel", "rmse")]
        return RoundTimes(verdict, stages, self._between("start", "live"), step_ms, *scores)

    def _between(self, start: str, end: str) -> float:
        return self._at.get(end, nan) - self._at.get(start, nan)

    def _on_status(self, message: DiagnosticStatus) -> None:
        self._status = {v.key: v.value for v in message.values}
        stage, step = self._status.get("stage", ""), self._status.get("step", "")
        if not stage:
            return
        if stage == "judging" and step == self._status.get("steps") != "0":
            stage = "storing"
        names = {"done": "swap"}
        if stage != "starting":
            self._at.setdefault(names.get(stage, stage), time.monotonic())

    def _on_depth(self, message: Image) -> None:
        self._at.setdefault("live", time.monotonic())

    def _send_image(self) -> None:
        header = Image().header
        header.stamp = self._node.get_clock().now().to_msg()
        self._images.publish(conversions.rgb_to_image(self._picture, header))

    def _await(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            for child in self._children:
                if child.ended:
                    log = child.program.log
                    said = "" if log is None else log.read_text(errors="replace")[-_SAID:]
                    name = child.program.name
                    raise TiekdError(f"{name} {child.ended}, waiting for {what}:\n{said}")
            if time.monotonic() > deadline:
                raise TiekdError(f"{what} did not come in {timeout_s:.0f} s")
            time.sleep(0.01)
