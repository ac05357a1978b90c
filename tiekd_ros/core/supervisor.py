"""Child processes: started together, watched, stopped cleanly."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.launch_options import (
    COMPANION,
    NodeProcess,
    local_teacher,
    node_processes,
    unset_values,
)

TRANSPORTS = "LARGE_DATA?max_msg_size=2MB&sockets_size=4MB&non_blocking=true"
"""Fast DDS loses most camera images between processes with its default transports."""


def require_ros() -> None:
    """Raise TiekdError, with the way out, where Python finds no ROS 2."""
    if importlib.util.find_spec("rclpy") is None:
        raise TiekdError(
            "ROS 2 is not to be found (no module rclpy): source your installation "
            "(source /opt/ros/$ROS_DISTRO/setup.bash), or install the wheels: "
            'pip install "tiekd_ros[ros]"'
        )


def prepare_environment() -> None:
    """Set what ROS needs in this process and its children; the user's own settings win."""
    os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", TRANSPORTS)
    os.environ.setdefault("AMENT_PREFIX_PATH", sys.prefix)


def isolate() -> int:
    """Keep this process and its children to this machine, in a domain of their own.

    Returns:
        The domain's number; a ROS_DOMAIN_ID that the user set is kept.
    """
    os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    return int(os.environ.setdefault("ROS_DOMAIN_ID", str(secrets.randbelow(101) + 1)))


_RESTART_S = (1.0, 30.0)  # first and longest wait before a child is started again
_STEADY_S = 60.0  # a child that ran this long starts again with the first wait
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLOSING_S = 10.0  # so long a program that was asked to end is left alone
_INTERRUPTED = 130  # the exit status that shells give to Ctrl-C

# Runs in the child before its program does. Not a `preexec_fn`: that forks, which is unsafe
# where there are threads (ROS, gRPC). 1 is PR_SET_PDEATHSIG of prctl(2); the second line is for
# a parent that died before it.
_BEGINNING = """\
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Program:
    """Command and environment of one child process."""

    name: str
    command: Sequence[str]
    log: Path | None = None
    """File for its output; None = this process's own output."""
    environment: Mapping[str, str] = field(default_factory=dict)
    required: bool = True
    """Whether all programs end where this one refuses to start; else it is tried again."""


class Child:
    """A running child process in a session of its own, so that Ctrl-C reaches only us.

    On Linux it is asked to end (SIGTERM) when the thread that made it is no more, however that
    came about: make it in the main thread.

    Raises:
        TiekdError: the program is not there, or cannot be run.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.started = time.monotonic()
        environment = {**os.environ, **program.environment}
        if shutil.which(program.command[0], path=environment.get("PATH")) is None:
            raise TiekdError(f"cannot start {program.name}: there is no {program.command[0]}")
        with contextlib.ExitStack() as files:
            try:
                log = None if program.log is None else files.enter_context(program.log.open("a"))
                self.process = subprocess.Popen(
                    _ending_with_us(program.command),
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
        """Its end, in words; empty while it runs."""
        code = self.process.poll()
        if code is None:
            return ""
        return f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"


def _ending_with_us(command: Sequence[str]) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BEGINNING, str(os.getpid()), *command]


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


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """End the program in order at SIGINT, SIGTERM or SIGHUP: what is open is closed first.

    Then one line tells of it, and the exit status is 130. A second Ctrl-C does not disturb the
    closing, unless that takes very long.
    """
    asked_s = -math.inf

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        if time.monotonic() - asked_s > _CLOSING_S:
            asked_s = time.monotonic()
            raise KeyboardInterrupt

    with _handling(end):
        try:
            yield
        except KeyboardInterrupt:
            sys.stderr.write("interrupted\n")
            sys.exit(_INTERRUPTED)


@contextlib.contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that end a program; one that is ignored (nohup) stays so."""
    handled = [n for n in _ENDING if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in handled}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


class _Supervised:
    """A program that should run: its child, and the time of its next start."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.child: Child | None = None
        self.done = False
        self._due = 0.0
        self._wait = _RESTART_S[0]

    def poll(self, say: Callable[[str], None]) -> None:
        """Start the program where it is due; note its end.

        Raises:
            TiekdError: it is required and ended with status 1 soon after its first start: what
                was asked of it cannot work, and trying again would not help.
        """
        now, child = time.monotonic(), self.child
        if child is None:
            if not self.done and now >= self._due:
                self.child = Child(self.program)
            return
        if not child.ended:
            return
        self.child = None
        soon = now - child.started < _STEADY_S
        refuses = child.process.returncode == 1 and soon and not self._due
        if refuses and self.program.required:
            raise TiekdError(f"{self.program.name} cannot start; its own message says why")
        if child.process.returncode == 0:
            self.done = True
            say(f"{self.program.name} is done")
            return
        if not soon:
            self._wait = _RESTART_S[0]
        self._due = now + self._wait
        say(f"{self.program.name} {child.ended}; again in {self._wait:.0f} s")
        self._wait = min(2 * self._wait, _RESTART_S[1])


def supervise(programs: Sequence[Program], say: Callable[[str], None]) -> None:
    """Run programs until SIGINT, SIGTERM or SIGHUP, or until all are done.

    One that ends with status 0 is done; one that ends otherwise is started again, with growing
    waits. A required one that refuses to start ends all.

    Args:
        programs: what to run.
        say: receives one line for each event worth knowing.

    Raises:
        TiekdError: a required program refused to start (status 1).
    """
    asked: list[int] = []
    supervised = [_Supervised(program) for program in programs]
    with _handling(lambda number, frame: asked.append(number)):
        try:
            while not asked and not all(one.done for one in supervised):
                for one in supervised:
                    one.poll(say)
                time.sleep(0.1)
        finally:
            stop_children([one.child for one in supervised if one.child is not None])


def node_command(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs one of this package's nodes with ROS arguments."""
    return [sys.executable, "-m", "tiekd_ros.nodes.programs", name, "--ros-args", *arguments]


def node_programs(
    given: Mapping[str, str],
    fixed: Mapping[str, Mapping[str, object]] | None = None,
    logs: Path | None = None,
) -> list[Program]:
    """Return the programs to run: the nodes, and before them a teacher where one is to run here.

    Args:
        given: values of `LAUNCH_OPTIONS`, by name; those that are missing are not given.
        fixed: by node, parameters that win over all others.
        logs: folder for one log file a program; None = this process's own output.
    """
    values = {**unset_values(), **given}
    companion, teacher = local_teacher(values)
    fixed = fixed or {}
    fixed = {**fixed, COMPANION: {**companion, **fixed.get(COMPANION, {})}}
    commands = {p.executable: _command_of(p) for p in node_processes(values, fixed)}
    if teacher:
        commands = {"teacher": [sys.executable, "-m", "tiekd_ros.cli", *teacher], **commands}
    return [
        # Without a teacher depth is published and frames are logged all the same.
        Program(name, command, logs and logs / f"{name}.log", required=name != "teacher")
        for name, command in commands.items()
    ]


def _command_of(process: NodeProcess) -> list[str]:
    arguments = ["-r", f"__ns:=/{process.namespace.strip('/')}"]
    for name, topic in process.remappings.items():
        arguments += ["-r", f"{name}:={topic}"]
    if process.params_file:
        arguments += ["--params-file", process.params_file]
    for name, value in process.parameters.items():  # YAML; the later one wins
        arguments += ["-p", f"{name}:={json.dumps(value, ensure_ascii=False)}"]
    return node_command(process.executable, [*arguments, "--log-level", process.log_level])
