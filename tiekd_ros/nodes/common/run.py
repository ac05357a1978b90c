"""Starting a node as a program: arguments, self-start, signals, a clean end."""

from __future__ import annotations

import logging
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.impl.rcutils_logger import RcutilsLogger
from rclpy.node import Node

from tiekd_ros.core.errors import TiekdError
from tiekd_ros.nodes.common import memory, watchdog

_SWITCH_S = 1e-4
"""How long a thread may keep the interpreter while another waits for it.

The executor's thread, and one that loads a student, would hold up each image by some of Python's
default of 5 ms. Measured: an image waits 0.3 ms for its thread instead of 0.65.
"""


def run_nodes(make: Sequence[Callable[[], Node]], arguments: Sequence[str] | None) -> int:
    """Run nodes in this process until they are told to stop.

    Each spins in a thread of its own, so that none waits for another's callbacks. One with a
    method `start` is started first.

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
    try:
        for each in make:
            nodes.append(_made(each))
        _forward_logging(nodes)
        for node in nodes:
            if (start := getattr(node, "start", None)) is not None:
                start()
        memory.settle()
        sys.setswitchinterval(_SWITCH_S)
        _spin(nodes)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except TiekdError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        _ignore_further_signals()
        for node in reversed(nodes):
            _end(node)
        rclpy.try_shutdown()
    return 0


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
            _spin_one(node, executor)
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
    with watchdog.watching() as dog:
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


def _spin_one(node: Node, executor: SingleThreadedExecutor) -> None:
    executor.add_node(node)
    with suppress(ExternalShutdownException), until_shutdown(node):  # SIGTERM ends rclpy
        executor.spin()  # between two looks of the executor


@contextmanager
def until_shutdown(node: Node) -> Iterator[None]:
    """Publish from a thread of one's own, and spin, within this.

    A signal shuts rclpy down at once, in the middle of a message or of the executor's work.
    """
    try:
        yield
    except RuntimeError:  # rclpy's RCLError and InvalidHandle
        if node.context.ok():
            raise


def _ignore_further_signals() -> None:
    """From here to the end of the process: under `ros2 launch` a node gets Ctrl-C twice."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end(node: Node) -> None:
    release = getattr(node, "release", None)
    if release is not None:
        release()
    node.destroy_node()


class _RosHandler(logging.Handler):
    """Passes the rooms' log records on to the logger of the node whose rooms they are.

    So they reach /rosout. A node names its rooms in an attribute `rooms`; all else is the first's.
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
        except Exception:  # whoever logs goes on, whatever becomes of the text
            self.handleError(record)


def _forward_logging(nodes: Sequence[Node]) -> None:
    root = logging.getLogger("tiekd_ros")
    root.setLevel(logging.INFO)
    root.handlers = [_RosHandler(nodes)]
    root.propagate = False
