"""What a server logs of requests on which its backend broke: whole, but not without end."""

from __future__ import annotations

import logging
import math
import secrets
import threading
import time
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)
# So often each kind of error is told with its traceback; between that it is counted.
_EVERY_S = 60.0


@dataclass
class _Told:
    mark: str
    until: float
    more: int = 0


class Breakages:
    """Tells each kind of error once a minute, under a mark by which a caller can name it."""

    def __init__(self) -> None:
        """Begin with nothing told."""
        self._lock = threading.Lock()
        self._told: dict[str, _Told] = {}

    def tell(self, error: Exception) -> str:
        """Log an error, or count it where one of its kind was just told.

        Returns:
            The mark under which the log has this one, or the one of its kind.
        """
        kind, now = type(error).__name__, time.monotonic()
        with self._lock:
            last = self._told.get(kind)
            if last is not None and now < last.until:
                last.more += 1
                return last.mark
            told = self._told[kind] = _Told(secrets.token_hex(4), now + _EVERY_S)
        if last is not None:
            _sum_up(kind, last)
        _LOG.error("the teacher broke on request %s; the server goes on", told.mark, exc_info=error)
        return told.mark

    def sum_up(self, now: float = math.inf) -> None:
        """Tell how many were only counted, of the kinds whose minute is over."""
        with self._lock:
            over = {kind: told for kind, told in self._told.items() if now >= told.until}
            for kind in over:
                del self._told[kind]
        for kind, told in over.items():
            _sum_up(kind, told)


def _sum_up(kind: str, told: _Told) -> None:
    if told.more:
        _LOG.error(
            "the teacher broke on %d more requests as on %s (%s)", told.more, told.mark, kind
        )
