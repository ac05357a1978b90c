"""How the server's process ends."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
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


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Give an event that the first SIGINT or SIGTERM sets; the second ends the process.

    The second is the kernel's to act on: an exception would only reach this thread, and the
    process would still wait for the threads of those calls. Afterwards both signals do what they
    did before.
    """
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()
        for each in _ENDING:
            signal.signal(each, signal.SIG_DFL)

    before = {number: signal.signal(number, ask) for number in _ENDING}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
