"""How the server's process ends."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

_ENDING = (signal.SIGINT, signal.SIGTERM)


def end_process() -> NoReturn:
    """End without Python's own end, which aborts where a thread is within the backend's C++."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


class Asked:
    """Whether the process has been asked to stop.

    A pipe, as a signal's handler interrupts the very thread that waits: of an Event it might wait
    for the lock that this thread holds.
    """

    def __init__(self) -> None:
        """Open the pipe, until `close`."""
        self._reader, self._writer = os.pipe()
        self._poll = select.poll()
        self._poll.register(self._reader, select.POLLIN)

    def note(self) -> None:
        """Wake who waits, now and from now on."""
        os.write(self._writer, b"!")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until it was asked; False if `timeout_s` passed before."""
        return bool(self._poll.poll(None if timeout_s is None else timeout_s * 1000))

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._reader)
        os.close(self._writer)


@contextmanager
def asked_to_stop() -> Iterator[Asked]:
    """Give what says whether a SIGINT or SIGTERM has come; the second ends the process.

    The second is the kernel's to act on: an exception would only reach this thread, and the
    process would still wait for the threads of those calls. Afterwards both signals do what they
    did before.
    """
    asked = Asked()

    def ask(number: int, frame: FrameType | None) -> None:
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)
        asked.note()

    before = {number: signal.signal(number, ask) for number in _ENDING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        asked.close()
