"""The three modes of `node.py`: idle beside echo and bare network, training, swapping."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from measuring import Spread, progress, spread
from node_stage import ECHO, NAMESPACE, Helper, Made, helpers, nodes, own_domain, prepare
from node_stream import Latency, Watcher

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.supervisor import Child
from tiekd_ros.student import InputSize, StudentRegistry

_SETTLE_S = 0.4  # after the last image, for its depth to come
_DIAGNOSED_S = 5.5  # how far back latency in the diagnostics reaches, and a little more
_SETTLED_S = 8.0  # after a round: promotion, loading and probing are over, the worker is gone
_STARTS = 4  # now and then Fast DDS never matches two of them, for no reason that was found
_FOUND_S = 40.0  # by then they have found each other, or never will
_RATES_HZ = (60.0, 30.0, 15.0, 10.0, 5.0, 2.0)


@dataclass
class Bench:
    """Camera, node, echo, bare network and observer, all at work."""

    made: Made
    watcher: Watcher
    camera: Helper
    bare: Helper
    rate_hz: float

    def play(self, seconds: float, namespace: str = NAMESPACE) -> list[int]:
        """Let the camera play and return the stamps of its images."""
        with self.playing(namespace) as shown:
            time.sleep(seconds)
        return shown

    @contextmanager
    def playing(self, namespace: str = NAMESPACE, rate_hz: float = 0.0) -> Iterator[list[int]]:
        """Let the camera play meanwhile; afterwards the list holds the stamps of its images."""
        shown: list[int] = []
        self.camera.ask(f"play {namespace} {rate_hz or self.rate_hz}")
        try:
            yield shown
        finally:
            shown += self.camera.ask("pause")["stamps"]
            time.sleep(_SETTLE_S)

    def diagnosed(self, name: str) -> float:
        """Return a number from depth_node's last diagnostics."""
        return float(self.watcher.values[name])


@contextmanager
def bench(
    size: InputSize,
    device: str,
    runtime: str,
    *,
    labelled: int = 0,
    steps: int = 1,
) -> Iterator[Bench]:
    """Make a state folder, start everything and wait until depth flows.

    Args:
        size: the students' input size.
        device: where the student runs, as the node's parameter.
        runtime: the node's parameter.
        labelled: frames to learn from; 0 = without a companion.
        steps: of a training round.
    """
    with ExitStack() as stack:
        made = prepare(Path(stack.enter_context(TemporaryDirectory())), size, labelled)
        depth = {"state_dir": made.state.root, "device": device, "runtime": runtime}
        companion = {"state_dir": made.state.root, "teacher.url": '""', "train.iterations": steps}
        wanted = [("depth_node", depth), ("companion_node", companion)][: 1 + bool(labelled)]
        running = _start(stack, made, wanted)
        kind = running.watcher.values["runtime"].partition(" ")[0].rstrip(",")
        arguments = ("bare", made.pictures, made.state.students, device, kind)
        (running.bare,) = stack.enter_context(helpers(arguments))
        running.play(3.0)
        while running.rate_hz > _RATES_HZ[-1] and not _fits(running, running.rate_hz):
            running.rate_hz = next(rate for rate in _RATES_HZ if rate < running.rate_hz)
        yield running


def _start(stack: ExitStack, made: Made, wanted: Sequence[tuple[str, dict[str, object]]]) -> Bench:
    """Start all; again, in another domain, where they do not find each other in time."""
    for left in reversed(range(_STARTS)):
        try:
            return _started(stack, made, wanted)
        except TiekdError as error:
            if not left:
                raise
            sys.stderr.write(f"starting the nodes again: {error}\n")
    raise AssertionError


def _started(
    stack: ExitStack, made: Made, wanted: Sequence[tuple[str, dict[str, object]]]
) -> Bench:
    with ExitStack() as attempt:
        attempt.enter_context(own_domain())
        watcher = attempt.enter_context(Watcher())
        children = attempt.enter_context(nodes(*wanted, logs=made.state.logs))
        camera, _echo = attempt.enter_context(
            helpers(("camera", made.pictures, f"{NAMESPACE},{ECHO}"), ("echo", ECHO))
        )
        running = Bench(made, watcher, camera, camera, 15.0)
        with running.playing(rate_hz=5.0):
            _await_depth(watcher, children)
        with running.playing(ECHO, rate_hz=5.0):
            watcher.wait_until(watcher.echoes, "an echo", _FOUND_S)
        stack.push(attempt.pop_all())
        return running


def _await_depth(watcher: Watcher, started: Sequence[Child]) -> None:
    def settled() -> bool:
        flows = watcher.values.get("depth rate [Hz]", "0.000") != "0.000"
        return flows or any(child.ended for child in started)

    watcher.wait_until(settled, "depth", _FOUND_S)
    for child in started:
        if child.ended:
            log = child.program.log
            said = log.read_text(errors="replace") if log is not None else ""
            raise TiekdError(f"{child.program.name} {child.ended}:\n{said}")


def _fits(running: Bench, rate_hz: float) -> bool:
    """Say whether the node can take images at this rate, with as much time to spare."""
    running.watcher.wait_until(lambda: "latency p50 [ms]" in running.watcher.values, "latency")
    return 2 * running.diagnosed("latency p50 [ms]") <= 1e3 / rate_hz


class Idle(NamedTuple):
    """Delays in milliseconds, measured in turns."""

    runtime: str
    node: Latency
    node_delay: Spread  # stamp to depth received
    echo_delay: Spread  # the same of the echo: the transport alone
    inside: float  # image arrived in the node's callback to depth published: median
    bare: Spread  # the runtime without ROS, one image right after the other
    bare_paced: Spread  # the same at the camera's rate
    stages: dict[str, float]  # of the node, medians


def run_idle(running: Bench, rounds: int) -> Idle:
    """Measure node, echo and bare network in turns."""
    watcher = running.watcher
    shown: list[int] = []
    echoed: list[int] = []
    inside: list[float] = []
    fast: list[float] = []
    paced: list[float] = []
    with progress() as bar:
        for _ in bar.track(range(rounds), description="idle"):
            shown += running.play(_DIAGNOSED_S)[3:]  # the first few find everything cold
            inside.append(running.diagnosed("latency p50 [ms]"))
            values = watcher.values
            echoed += running.play(2.0, ECHO)[3:]
            fast += running.bare.ask("run 60 0")["ms"][5:]
            paced += running.bare.ask(f"run {round(3 * running.rate_hz)} {running.rate_hz}")["ms"][
                3:
            ]
    return Idle(
        values["runtime"],
        watcher.latency([shown]),
        spread(watcher.delays(shown)),
        spread(watcher.delays(echoed, ECHO)),
        float(np.median(inside)),
        spread(fast),
        spread(paced),
        {k[5:-5]: float(v) for k, v in values.items() if k.startswith("time ")},
    )


class Training(NamedTuple):
    """The stream beside a distillation round, and without one just before and after."""

    runtime: str  # of the node while training went on
    before: Latency
    training: Latency
    after: Latency
    steps: int
    wanted_steps: int
    seconds: float  # from the call to the verdict
    rested_s: float
    verdict: str


def run_training(running: Bench, steps: int, seconds: float, timeout_s: float) -> Training:
    """Measure the stream beside a round.

    Args:
        running: with labelled frames and a companion.
        steps: that the round is to make.
        seconds: of idle stream before and after it.
        timeout_s: for the round.
    """
    watcher = running.watcher
    before = running.play(seconds)[3:]
    with progress() as bar, running.playing() as during:
        task = bar.add_task("training", total=steps)
        started = time.monotonic()
        watcher.distill()
        while watcher.round.get("stage") != "done" and time.monotonic() - started < timeout_s:
            bar.update(task, completed=watcher.steps_done)
            time.sleep(0.2)
        took = time.monotonic() - started
        runtime = watcher.values["runtime"]
    status = watcher.round
    _settle(running, status)
    after = running.play(seconds)[3:]
    return Training(
        runtime,
        watcher.latency([before]),
        watcher.latency([during[3:]]),
        watcher.latency([after]),
        _steps_of(running, status),
        steps,
        took,
        float(status.get("rested_seconds", 0.0)),
        status.get("state", "") if status.get("stage") == "done" else "not over in time",
    )


def _steps_of(running: Bench, status: dict[str, str]) -> int:
    """Return how many steps a round made, by its student; else the last that it told of."""
    if not status.get("version"):
        return running.watcher.steps_done
    card = StudentRegistry(running.made.state.students).card(status["version"])
    return int(card.training["steps"])


def _settle(running: Bench, status: dict[str, str]) -> None:
    """Wait until the node runs what came of a round, and what this took has died away."""
    watcher = running.watcher
    if status.get("state") == "accepted":
        with suppress(TiekdError):  # in vain: then the stretch before the round is what is left
            watcher.wait_until(
                lambda: watcher.values["student"] == status["version"], "the new student"
            )
    running.play(_SETTLED_S)


class Swapping(NamedTuple):
    """The stream while students are exchanged, and without, at the same rate."""

    rate_hz: float
    idle: Latency
    swapping: Latency
    swaps: int
    seconds: float


def run_swaps(running: Bench, swaps: int, seconds: float) -> Swapping:
    """Exchange two students as fast as the node takes them, at the highest rate that it takes.

    Args:
        running: its node runs one of the two.
        swaps: how many.
        seconds: of stream without swaps before.
    """
    watcher = running.watcher
    rate = next((rate for rate in _RATES_HZ if _fits(running, rate)), _RATES_HZ[-1])
    with running.playing(rate_hz=rate) as before:
        time.sleep(seconds)
    with progress() as bar, running.playing(rate_hz=rate) as during:
        time.sleep(0.5)
        started = time.monotonic()
        for number in bar.track(range(swaps), description="swapping"):
            version = running.made.versions[(number + 1) % 2]
            watcher.announce(version)
            watcher.wait_until(
                lambda version=version: watcher.values["student"] == version, "the swap"
            )
        took = time.monotonic() - started
    return Swapping(rate, watcher.latency([before[3:]]), watcher.latency([during[3:]]), swaps, took)
