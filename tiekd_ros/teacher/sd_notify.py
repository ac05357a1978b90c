"""What systemd is told: ready, alive, about to end (sd_notify(3)). Nothing where it is not asked.

The protocol is one datagram of `KEY=VALUE` lines to the socket that $NOTIFY_SOCKET names.
"""

from __future__ import annotations

import contextlib
import os
import socket


class Systemd:
    """The service manager that started this process, if one did."""

    def __init__(self) -> None:
        """Read from the environment where it listens, and how often it wants to hear."""
        address = os.environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ stands for one in Linux's abstract namespace.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = _watchdog_s()
        """Time within which it wants `alive` again; None = it does not watch."""

    def ready(self, status: str) -> None:
        """Tell that the service has started; `status` is what `systemctl status` shows."""
        self._tell(f"READY=1\nMAINPID={os.getpid()}\nSTATUS={status}")

    def alive(self) -> None:
        """Tell that the service works."""
        self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """Tell that the service is about to end."""
        self._tell("STOPPING=1")

    def _tell(self, text: str) -> None:
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
