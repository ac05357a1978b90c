"""An image that waits for the backend."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tiekd_ros.images import RgbImage
from tiekd_ros.teacher.errors import BusyError, CallerGoneError, LateError
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest

# A caller's own clock for its deadline runs ahead by the time that the request took to get here:
# whoever is gone so shortly before the end has waited for it.
_AHEAD_S = 0.25


@dataclass(eq=False)
class WaitingImage:
    """One image on its way through the batcher."""

    image: RgbImage | None  # None once it is labelled: an answer must not keep it in memory
    request: DepthRequest
    size: tuple[int, int]
    arrived_ns: int
    until: float  # on the monotonic clock
    is_active: Callable[[], bool]
    done: threading.Event = field(default_factory=threading.Event)
    outcome: DepthAnswer | Exception | None = None

    def settle(self, outcome: DepthAnswer | Exception) -> None:
        """Hand the outcome to whoever waits, and let the pixels go."""
        self.image = None
        self.outcome = outcome
        self.done.set()

    def hopeless(self) -> BusyError | None:
        """Return why labelling it would be in vain; None where it would not."""
        left_s = self.until - time.monotonic()
        if left_s > 0 and self.is_active():
            return None
        if left_s > _AHEAD_S:
            return CallerGoneError("the caller has given up")
        return LateError(
            "the backend did not come to this image before the request's deadline; try later"
        )
