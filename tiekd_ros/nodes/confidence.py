"""How sure the student was of an image, for the frame log."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import Image

from tiekd_ros.errors import BadImageError
from tiekd_ros.nodes import conversions

_LEAST_INTERVAL_NS = 500_000_000
_LONGEST_AGE_NS = 1_000_000_000


class ConfidenceListener:
    """Keeps the mean of the latest confidence image; looks at two a second at most.

    Messages come in one thread; `at` may be asked from others.
    """

    def __init__(self) -> None:
        self._latest: tuple[int, float | None] | None = None  # (stamp in ns, mean)

    def hear(self, message: Image) -> None:
        """Take note of a confidence image; one that cannot be read is passed over."""
        stamp = conversions.stamp_ns(message.header)
        if self._latest is not None and abs(stamp - self._latest[0]) < _LEAST_INTERVAL_NS:
            return
        try:
            values = conversions.image_to_float(message)
        except BadImageError:
            return
        if values.size:
            mean = float(np.mean(values[::4, ::4]))
            # A student without a depth probability map does not know: NaN.
            self._latest = (stamp, mean if np.isfinite(mean) else None)

    def at(self, stamp_ns: int) -> float | None:
        """Return the mean confidence of about this time, 0..1, None where none is known."""
        latest = self._latest  # once: another may come meanwhile
        if latest is None or abs(stamp_ns - latest[0]) > _LONGEST_AGE_NS:
            return None
        return latest[1]
