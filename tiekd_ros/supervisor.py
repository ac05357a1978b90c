"""Child processes: started together, watched, stopped cleanly."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tiekd_ros.errors import TiekdError

_RESTART_S = (1.0, 30.0)  # first and longest wait before a child is started again
_STEADY_S = 60.0  # a child that ran this long starts again with the first wait


@dataclass(frozen=True)
class Program:
    """How to start one child."""

    name: str
    command: Sequence[str]
    log: Path | None = None
    """Where its output goes; None = to this process's own output."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Child:
    """A running child process in a session of its own, so that Ctrl-C reaches only us."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.started = time.monotonic()
        environment = {**os.environ, **program.environment}
        try:
            if program.log is None:
                self.process = subprocess.Popen(
                    program.command, env=environment, start_new_session=True
                )
            else:
                with program.log.open("a") as log:
                    self.process = subprocess.Popen(
                        program.command,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
        except OSError as error:
            raise TiekdError(f"cannot start {program.name}: {error}") from error

    @property
    def ended(self) -> str:
        """How it ended, in words; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def stop_children(children: Sequence[Child], patience_s: float = 20.0) -> None:
    """Ask all to stop (SIGTERM), wait, then kill what is left.

    Not SIGINT: a Python that is still importing answers that with a traceback.
    """
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.process.terminate()
    deadline = time.monotonic() + patience_s
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def supervise(programs: Sequence[Program], say: Callable[[str], None]) -> None:
    """Run programs until SIGINT or SIGTERM; start one that ends again, with growing waits.

    Args:
        programs: what to run.
        say: receives one line for each event worth knowing.
    """
    asked: list[int] = []
    before = {
        number: signal.signal(number, lambda received, frame: asked.append(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    children: dict[str, Child] = {}
    waits = {p.name: _RESTART_S[0] for p in programs}
    due = {p.name: 0.0 for p in programs}
    try:
        while not asked:
            for program in programs:
                child, now = children.get(program.name), time.monotonic()
                if child is not None and child.ended:
                    del children[program.name]
                    steady = now - child.started > _STEADY_S
                    waits[program.name] = _RESTART_S[0] if steady else waits[program.name]
                    due[program.name] = now + waits[program.name]
                    say(f"{program.name} {child.ended}; again in {waits[program.name]:.0f} s")
                    waits[program.name] = min(2 * waits[program.name], _RESTART_S[1])
                elif child is None and now >= due[program.name]:
                    children[program.name] = Child(program)
            time.sleep(0.1)
    finally:
        stop_children(list(children.values()))
        for number, handler in before.items():
            signal.signal(number, handler)


def node_command(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs one of this package's nodes with ROS arguments."""
    module = f"tiekd_ros.nodes.{name}"
    return [sys.executable, "-m", module, "--ros-args", *arguments]
