"""Nodes and other programs as processes of their own, ended by their ids."""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.children import child_environment
from ros_helpers.waiting import PATIENCE_S, wait_for
from tiekd_ros.core.supervisor import Child, Program, node_command, stop_children


class Process:
    """A running program, with its output in a file."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.log = log
        self.child = Child(Program(name, command, log, child_environment()))

    @property
    def pid(self) -> int:
        return self.child.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash would."""
        self.child.process.kill()
        self.child.process.wait()

    def stop(self, number: int = signal.SIGINT) -> int:
        """Ask it to end and return its exit status."""
        self.child.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for its end and return its exit status."""
        return self.child.process.wait(PATIENCE_S)

    def await_output(self, text: str) -> None:
        wait_for(lambda: text in self.output, f"{text!r} in the log", explain=lambda: self.output)


class Processes:
    """The processes of one test; what is left of them ends with it."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace = namespace
        self._folder = folder
        self._started: list[Process] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        stop_children([p.child for p in self._started])

    def node(self, name: str, *remappings: str, **parameters: object) -> Process:
        """Start one of the package's nodes; `__` in a parameter's name stands for a dot."""
        return self.start(name, self.command(name, *remappings, **parameters))

    def command(self, name: str, *remappings: str, **parameters: object) -> list[str]:
        """Return the command that `node` runs."""
        if name in ("depth_node", "tiekd_nodes"):  # to measure which is the fastest takes a second
            parameters = {"runtime": "torch", **parameters}
        arguments = ["-r", f"__ns:={self.namespace}"]
        for remapping in remappings:
            arguments += ["-r", remapping]
        for key, value in parameters.items():
            arguments += ["-p", f"{key.replace('__', '.')}:={_yaml(value)}"]
        return node_command(name, arguments)

    def tiekd(self, *arguments: str) -> Process:
        """Start the `tiekd` command."""
        return self.start("tiekd", [sys.executable, "-m", "tiekd_ros.cli", *arguments])

    def start(self, name: str, command: Sequence[str]) -> Process:
        log = self._folder / f"{name}-{next(self._numbers)}.log"
        process = Process(name, command, log)
        self._started.append(process)
        return process


def find_process(*words: str) -> int | None:
    """Return the id of a running process with all these words on its command line."""
    for pid, command in _commands().items():
        if pid != os.getpid() and all(word in command for word in words):
            return pid
    return None


def is_running(pid: int) -> bool:
    """Say whether a process is there and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def _commands() -> Mapping[int, str]:
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_running(int(entry.name)):
            continue
        try:
            found[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
    return found


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
