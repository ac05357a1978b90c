"""What the labeller knows of its link to the teacher: how it is, and when to ask again."""

from __future__ import annotations

import logging
import math
import random
import time

from tiekd_ros.errors import TiekdError
from tiekd_ros.frames.answers import LinkState, NotNow, SuspectTeacherError
from tiekd_ros.frames.settings import LabellerSettings

_LOG = logging.getLogger(__name__)
_MOST_DOUBLINGS = 30  # beyond, the power of two says nothing: the cap has been met
_SAY_AGAIN_S = 60.0


class TeacherLink:
    """Counts failures and waits longer after each. The labeller's lock guards it."""

    def __init__(self, settings: LabellerSettings) -> None:
        self.state: LinkState = "idle"
        self.suspect = False
        """It is down since the teacher answers, but nothing that is believed."""
        self.failures = 0
        """In a row."""
        self.failed = 0
        """Since the start, the store's faults too."""
        self.last_error = ""
        self._settings = settings
        self._retry_at = 0.0  # monotonic
        self._said_at = -math.inf  # monotonic
        self._starting_until = time.monotonic() + settings.starting_s

    def retry_in_s(self) -> float:
        """Return how long to leave the teacher alone from now on."""
        return max(0.0, self._retry_at - time.monotonic())

    def answered(self) -> None:
        """Take note of an answer."""
        self.state = "ok"
        self._starting_until = 0.0
        self.suspect = False
        self.failures = 0
        self._retry_at = 0.0

    def fail(self, error: Exception) -> None:
        """Take note of a request that failed."""
        suspect = isinstance(error, SuspectTeacherError)
        starting = not suspect and time.monotonic() < self._starting_until
        news = self.state != "down" or suspect != self.suspect
        self.note(error, news=news, level=logging.INFO if starting else logging.WARNING)
        self.state = "down"
        self.suspect = suspect
        now = time.monotonic()
        if now >= self._retry_at:  # requests that fail together count as one failure
            self.failures += 1
            delay_s = self.delay_s(self.failures)
            if isinstance(error, NotNow):
                delay_s = error.retry_in_s
            self._retry_at = now + delay_s

    def note(self, error: Exception, *, news: bool = False, level: int = logging.WARNING) -> None:
        """Count an error, and log it now and then; at once where it is `news`."""
        self.failed += 1
        text = str(error) if isinstance(error, TiekdError) else f"{type(error).__name__}: {error}"
        now = time.monotonic()
        # Not by the text: it says how long was waited, and so differs each time.
        if news or now - self._said_at >= _SAY_AGAIN_S:
            self._said_at = now
            _LOG.log(level, "labelling: %s", text)
        self.last_error = text

    def delay_s(self, attempt: int) -> float:
        """Return how long to wait after so many failures in a row."""
        # Jitter: robots that lost the same teacher together must not come back together.
        doubled = self._settings.retry_s * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS)
        return min(doubled, self._settings.max_retry_s) * random.uniform(0.5, 1.0)
