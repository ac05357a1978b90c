"""Nodes as a program: arguments, signals, threads, a watchdog, memory, a clean end."""

from __future__ import annotations

import faulthandler
import gc
import logging
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import rclpy
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node

from tiekd_ros.core import Closing
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.common.reporting import torch_on_cuda

_SWITCH_S = 1e-4
"""How long a thread may keep the interpreter while another waits for it.

The executor's thread, and one that loads a student, would hold up each image by some of Python's
default of 5 ms. Measured: an image waits 0.3 ms for its thread instead of 0.65.
"""
_LEAVE_S = 5.0


def run_nodes(make: Sequence[Callable[[], Node]], arguments: Sequence[str] | None) -> int:
    """Run nodes in this process until they are told to stop.

    Each spins in a thread of its own, so that none waits for another's callbacks: the first in
    this thread, which gets the signals. A method `start` of a node is called before, here.

    Args:
        make: builds each node; a TiekdError from it is printed and ends the program with 1.
        arguments: command line, `sys.argv` where None.

    Returns:
        The exit status: 0 after a stop, 1 where a node could not be made, or one broke: then all
        end, since half of a program would look like a whole one.
    """
    try:
        rclpy.init(args=list(arguments) if arguments is not None else None)
    except RuntimeError as error:  # rclpy's RCLError: arguments or a parameter file
        sys.stderr.write(f"error: {str(error).splitlines()[0]}\n")
        return 1
    except KeyboardInterrupt:
        return 0
    nodes: list[Node] = []
    status = 1
    try:
        for each in make:
            nodes.append(_made(each))
        _forward_logging(nodes)
        for node in nodes:
            if (start := getattr(node, "start", None)) is not None:
                start()
        freeze_garbage()
        sys.setswitchinterval(_SWITCH_S)
        _spin(nodes)
        status = 0
    except (KeyboardInterrupt, ExternalShutdownException):
        status = 0
    except TiekdError as error:
        sys.stderr.write(f"error: {error}\n")
    finally:
        _ignore_further_signals()
        for node in reversed(nodes):
            if (release := getattr(node, "release", None)) is not None:
                release()
        leave_ros(nodes, status=status)
    return status


def _made(make: Callable[[], Node]) -> Node:
    try:
        return make()
    except RuntimeError as error:
        if not rclpy.ok():  # a signal shut rclpy down meanwhile
            raise ExternalShutdownException from error
        if not isinstance(error, rclpy_implementation.RCLError):
            raise
        # The middleware, such as DDS security.
        text = str(error).splitlines()[0].rstrip(",")
        raise TiekdError(f"ROS cannot make the node: {text}") from error


def _spin(nodes: Sequence[Node]) -> None:
    """Spin the first node in this thread, the others each in one of its own.

    Raises:
        TiekdError: one of them broke; the others were ended too.
    """
    broken: list[str] = []
    executors = [SingleThreadedExecutor() for _ in nodes]
    ending = threading.Event()

    def spin(node: Node, executor: SingleThreadedExecutor) -> None:
        try:
            executor.add_node(node)
            with suppress(ExternalShutdownException), until_shutdown(node):  # SIGTERM ends rclpy
                executor.spin()  # between two looks of the executor
        except Exception as error:
            if not ending.is_set():  # else it breaks since its executor was ended
                traceback.print_exc()
                broken.append(f"{node.get_name()} broke: {type(error).__name__}: {error}")
        finally:
            ending.set()
            for each in executors:  # the others end with it
                each.shutdown(timeout_sec=0)

    others = [
        threading.Thread(target=spin, args=each, name=f"spin {each[0].get_name()}")
        for each in zip(nodes[1:], executors[1:], strict=True)
    ]
    with Watchdog() as dog:
        for node in nodes:
            dog.guard(node)
        for thread in others:
            thread.start()
        try:
            spin(nodes[0], executors[0])
        finally:
            _ignore_further_signals()
            for thread in others:
                thread.join()
    if broken:
        raise TiekdError("; ".join(broken))


@contextmanager
def until_shutdown(node: Node) -> Iterator[None]:
    """Ignore rclpy's errors within this once it is shut down; for threads that publish or spin.

    A signal shuts rclpy down at once, in the middle of a message or of the executor's work.
    """
    try:
        yield
    except RuntimeError:  # rclpy's RCLError and InvalidHandle
        if node.context.ok():
            raise


def _ignore_further_signals() -> None:
    """Ignore SIGINT until the process ends: under `ros2 launch` a node gets Ctrl-C twice."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def leave_ros(
    nodes: Sequence[Node], executor: SingleThreadedExecutor | None = None, *, status: int = 0
) -> None:
    """Close all that a program has of ROS; end the process where that takes more than 5 s.

    On a busy machine Fast DDS can take minutes to close a TCP channel, deaf to signals. Nothing
    is lost by then: what is closed here are sockets and shared memory.

    Args:
        nodes: released already.
        executor: shut down before them.
        status: the exit status of a process that is ended here.
    """

    def close() -> None:
        if executor is not None:
            executor.shutdown()
        for node in reversed(nodes):
            node.destroy_node()
        rclpy.try_shutdown()

    closing = threading.Thread(target=close, name="leave ROS", daemon=True)
    closing.start()
    closing.join(_LEAVE_S)
    if closing.is_alive():
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class _RosHandler(logging.Handler):
    """Passes log records of the package on to a node's ROS logger, and so to /rosout.

    A node names the subpackages whose records are its own in an attribute `rooms`; all others are
    the first node's.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__()
        self._loggers = [(getattr(node, "rooms", ()), node.get_logger()) for node in nodes]

    def _logger_of(self, name: str) -> RcutilsLogger:
        room = name.removeprefix("tiekd_ros.")
        found = [logger for rooms, logger in self._loggers if room.startswith(rooms)]
        return found[0] if found else self._loggers[0][1]

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, logger = self.format(record), self._logger_of(record.name)
            # rclpy ties a place in the code to one level: each level needs a call of its own.
            if record.levelno >= logging.ERROR:
                logger.error(text)
            elif record.levelno >= logging.WARNING:
                logger.warning(text)
            elif record.levelno >= logging.INFO:
                logger.info(text)
        except Exception:  # the caller that logs must not break by it
            self.handleError(record)


def _forward_logging(nodes: Sequence[Node]) -> None:
    root = logging.getLogger("tiekd_ros")
    root.setLevel(logging.INFO)
    root.handlers = [_RosHandler(nodes)]
    root.propagate = False


HANG_S = 60.0
"""An executor that runs none of its timers for so long hangs."""
LONG_WORK_S = 900.0
"""How long a transition may take: a large student that is exported on a small machine."""
_BEAT_S = 1.0
_BEFORE_S = 0.5
"""How long before the process is killed its threads' stacks are printed."""


class Watchdog(Closing):
    """Kills this process when one of its executors hangs, so that `respawn` or systemd restarts it.

    Fast DDS can fall into an endless loop over a damaged message (seen in 2.14 with an image,
    reported of 3.2 too). rclpy holds Python's lock meanwhile: no thread of the program gets a turn,
    and SIGTERM has no effect. The kernel's alarm clock still has one: each executor winds it up by
    a timer of its own, and when it rings the process is killed (SIGALRM), the stacks of its threads
    printed just before.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # By node: when it counts as hanging, monotonic seconds; written by its executor's thread.
        self._ends: dict[str, float] = {}
        _running.append(self)

    def guard(self, node: Node) -> None:
        """Watch a node's executor, which spins from now on."""
        name, steady = node.get_fully_qualified_name(), Clock(clock_type=ClockType.STEADY_TIME)
        with self._lock:
            self._ends[name] = math.inf
        node.create_timer(_BEAT_S, lambda: self.beat(name), clock=steady)
        self.beat(name)

    def beat(self, name: str, patience_s: float | None = None) -> None:
        """Say that a watched node's executor works, and will again within so long (HANG_S)."""
        now = time.monotonic()
        with self._lock:
            if name not in self._ends:  # it does not spin yet
                return
            self._ends[name] = now + (HANG_S if patience_s is None else patience_s)
            left_s = max(min(self._ends.values()) - now, 2 * _BEFORE_S)
            signal.setitimer(signal.ITIMER_REAL, left_s)
            if sys.__stderr__ is not None:
                faulthandler.dump_traceback_later(left_s - _BEFORE_S, file=sys.__stderr__)

    def close(self) -> None:
        """Watch no longer; the process has no other use of SIGALRM meanwhile."""
        _running.remove(self)
        with self._lock:
            self._ends.clear()
            signal.setitimer(signal.ITIMER_REAL, 0.0)
            faulthandler.cancel_dump_traceback_later()


_running: list[Watchdog] = []


@contextmanager
def long_work(node: Node) -> Iterator[None]:
    """Let a node's executor be busy for long within this, such as in a transition."""
    name = node.get_fully_qualified_name()
    for dog in _running:
        dog.beat(name, LONG_WORK_S)
    try:
        yield
    finally:
        for dog in _running:
            dog.beat(name)


def freeze_garbage() -> None:
    """Leave the present objects out of garbage collection.

    Looking through torch's and ROS's objects takes 55 to 170 ms, and the whole process stands
    still meanwhile: a stutter in the stream whenever a student is loaded.
    """
    gc.collect()
    gc.freeze()


def release_memory() -> None:
    """Free unreferenced objects, frozen ones too, and torch's cached GPU memory."""
    frozen = gc.get_freeze_count() > 0
    gc.unfreeze()
    gc.collect()
    if frozen:
        gc.freeze()
    torch = torch_on_cuda()
    if torch is not None:
        torch.cuda.empty_cache()
