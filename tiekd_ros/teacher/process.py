"""The teacher server as a process: logs, signals, and messages to systemd."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TextIO

from tiekd_ros.teacher.backend import Backend
from tiekd_ros.teacher.server import TeacherServer
from tiekd_ros.teacher.settings import ServerSettings

_LOG = logging.getLogger(__name__)
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and what the record adds."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry = {
            "time": _utc(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class TextFormatter(logging.Formatter):
    """One line for a person; what the record adds follows as key=value."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, and the traceback below it where there is one."""
        facts = getattr(record, "facts", {})
        added = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in facts.items())
        # Text that came over the network must not begin a line of its own.
        message = " ".join(record.getMessage().split())
        line = f"{_utc(record)} {record.levelname.lower()} {record.name}: {message}{added}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def configure_logs(form: str = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream`, by default standard error.

    Args:
        form: "text" or "json".
        level: the least that is logged: "debug" logs every request, "info" refused ones.
        stream: where they go.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)  # other libraries log too much below
    logging.getLogger("tiekd_ros").setLevel(level.upper())


def _utc(record: logging.LogRecord) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{whole}.{int(record.msecs):03d}Z"


class Systemd:
    """The service manager that started this process, if one did.

    The protocol is one datagram of `KEY=VALUE` lines to the socket that $NOTIFY_SOCKET names.
    """

    def __init__(self) -> None:
        """Read from the environment where it listens, and how often it expects a message."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ stands for one in Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s()
        """Time within which it wants `alive` again; None = it does not watch."""

    def ready(self, status: str) -> None:
        """Tell that the service has started; `status` is what `systemctl status` shows."""
        self._send(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def alive(self) -> None:
        """Tell that the service works."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._send("STOPPING=1")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        # A service goes on where its manager does not listen.
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line,
        ):
            line.connect(self._address)
            line.sendall(text.encode())


def _watchdog_s() -> float | None:
    usec, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 1e6


@contextmanager
def shutdown_signal() -> Iterator[Callable[[float | None], bool]]:
    """Wait for a SIGINT or SIGTERM in a process's main thread; the second ends the process.

    The second is the kernel's to act on: an exception would only reach this thread, and the
    process would still wait for the threads of those calls. Afterwards both signals do what they
    did before.

    Yields:
        A function that waits until one has come; False where so many seconds passed before,
        None = without end.
    """
    has_come = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal has_come
        for each in _STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        has_come = True

    def wait(timeout_s: float | None) -> bool:
        while not has_come and poll.poll(None if timeout_s is None else timeout_s * 1000):
            os.read(reader, 4096)  # `handle` has run, or does so before the loop goes on
        return has_come

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    # The signal itself ends no wait that is about to begin, or where it comes to another thread.
    wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, handle) for number in _STOP_SIGNALS}
    try:
        yield wait
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup_before)
        os.close(reader)
        os.close(writer)


def serve(
    backend: Backend,
    settings: ServerSettings | None = None,
    on_ready: Callable[[int], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM, then stop gracefully. For a process's main thread.

    A second SIGINT or SIGTERM ends the process at once, whatever still runs. Where the backend is
    still at a batch after the grace, the process ends here with status 0. systemd, where it
    started the process, is told when requests are taken, that the server works, and when it ends.

    Args:
        backend: the teacher.
        settings: where to listen.
        on_ready: called with the port once requests are taken.

    Raises:
        TeacherServerError: the port cannot be opened.
        InvalidSettingError: as `TeacherServer.start`.
    """
    server, systemd = TeacherServer(backend, settings), Systemd()
    alive_every_s = None if systemd.watchdog_s is None else systemd.watchdog_s / 3
    with shutdown_signal() as wait:
        try:
            port = server.start()
            if on_ready is not None:
                on_ready(port)
            systemd.ready(f"teacher {backend.identity.name} on port {port}")
            _LOG.info("serving", extra={"facts": {"teacher": backend.identity.name, "port": port}})
            while not wait(alive_every_s):
                if server.healthy:
                    systemd.alive()
            _LOG.info(
                "stopping; running requests are finished first, for %g s at most; a second Ctrl-C "
                "or SIGTERM ends them",
                server.settings.grace_s,
            )
        finally:
            systemd.stopping()
            at_rest = server.stop()
        if not at_rest:
            _end_process()


def _end_process() -> NoReturn:
    """End without Python's own end, which aborts where a thread is within the backend's C++."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
