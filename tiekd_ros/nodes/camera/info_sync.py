"""What the camera's messages tell of the camera: stamps that do not fit, calibrations that change.

All times are monotonic seconds, all stamps nanoseconds.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.common.reporting import WARN, Finding

RECENT_S = 5.0
"""What is that long ago says nothing of the present."""
_CHANGED_LATELY_S = 10.0
_IMAGES_KEPT, _INFOS_KEPT, _MOST_KEPT = 30, 60, 1000
"""So many are kept however old they are, and so many at most; between, those of RECENT_S."""
_NEIGHBOURS = 4
"""An image's camera_info is waited for where one of so many last images has got its own."""
_VIEWS = 100
"""The last calibrations that were asked for, whose share is reported."""
_ENOUGH_IMAGES = 10
_ENOUGH_INFOS = 3
_NEWEST_NS = 500_000_000
"""The camera_info of so new an image may still be on its way."""
_NO_STAMPS = (
    "the images carry no stamps (0), so nothing can be matched with them by time; set them in the "
    "camera's driver"
)
_CHANGED = (
    "an image takes the one with its stamp, or the newest; unless the lens zooms or was just "
    "calibrated, look for a second publisher of it"
)
_OTHER_FRAME = "it may be another camera's; remap image_info to this camera's camera_info"
_CALIBRATION = ("width", "height", "distortion_model", "d", "k", "r", "p", "binning_x", "binning_y")


class CameraWatch:
    """Remembers the stamps and calibrations that came lately.

    Messages come in one thread; `info_for` may be asked from others.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()  # told of each camera_info
        self._images: deque[tuple[int, float]] = deque()  # (stamp, when)
        self._infos: OrderedDict[int, tuple[CameraInfo, float]] = OrderedDict()  # by stamp
        self._newest: CameraInfo | None = None
        self._infos_came: deque[float] = deque(maxlen=_ENOUGH_INFOS)
        self._alone_since: float | None = None  # since when images come without any camera_info
        self._frames = ("", "")  # frame_id of the image, of the camera_info
        self._change: tuple[str, float] | None = None  # (what, when)
        self._exact: deque[bool] = deque(maxlen=_VIEWS)  # whether the image's stamp was met
        self._own_before = False  # images got their own before the stamps were forgotten
        self._closed = False
        self.images = self.infos = 0
        """How many came."""
        self.changes = self.jumps = 0
        """How often the calibration changed, and the images' stamps went back."""

    @property
    def newest(self) -> CameraInfo | None:
        """The camera_info that came last."""
        return self._newest

    def saw_image(self, message: Image | CompressedImage, now: float) -> float:
        """Take note of an image; return by how many seconds its stamp went back, mostly 0."""
        stamp = stamp_ns(message.header)
        with self._lock:
            last, when = self._images[-1] if self._images else (stamp, now)
            if stamp < last:  # a bag that starts again, a simulation that was reset
                self._forget(when)
                self.jumps += 1
            if self._alone_since is None or now - when > RECENT_S:  # a camera that had paused
                self._alone_since = now
            self._images.append((stamp, now))
            while _too_many(len(self._images), _IMAGES_KEPT, now - self._images[0][1]):
                self._images.popleft()
            self.images += 1
            self._frames = (message.header.frame_id, self._frames[1])
        return max(0.0, (last - stamp) * 1e-9)

    def saw_info(self, message: CameraInfo, now: float) -> None:
        """Take note of a camera_info."""
        with self._lock:
            if self._newest is not None:
                what = _difference(self._newest, message)
                if what:
                    self._change = (what, now)
                    self.changes += 1
            self._newest, self._alone_since = message, None
            self._infos_came.append(now)
            stamp = stamp_ns(message.header)
            self._infos.pop(stamp, None)  # to the end, since the order is that of arrival
            self._infos[stamp] = (message, now)
            while _too_many(len(self._infos), _INFOS_KEPT, now - self._oldest_info()):
                self._infos.popitem(last=False)
            self.infos += 1
            self._frames = (self._frames[0], message.header.frame_id)
            self._lock.notify_all()

    def info_for(
        self, stamp: int, patience_s: float = 0.0, first_s: float = 0.0
    ) -> CameraInfo | None:
        """Return the calibration with an image's stamp, the newest where there is none.

        Args:
            stamp: of the image.
            patience_s: how long to wait for a camera_info that comes after its image, where that
                of the images before has come. Not in the thread in which messages come.
            first_s: how long to wait where no camera_info at all has come yet; not there either.
        """
        with self._lock:
            if first_s > 0 and self._newest is None:
                self._lock.wait_for(lambda: self._newest is not None or self._closed, first_s)
            if patience_s > 0 and stamp not in self._infos and self._is_expected(stamp):
                self._lock.wait_for(lambda: stamp in self._infos or self._closed, patience_s)
            found = self._infos.get(stamp)
            if self._newest is not None:
                self._exact.append(found is not None)
            return self._newest if found is None else found[0]

    def forget(self) -> None:
        """Drop all stamps, since time has jumped; the newest camera_info stays the newest."""
        with self._lock:
            self._forget(math.inf)

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def exact(self) -> float | None:
        """Return the share of the last calibrations that had their image's stamp."""
        with self._lock:
            return sum(self._exact) / len(self._exact) if self._exact else None

    def synchronised(self) -> float | None:
        """Return the share of the last images with a camera_info of their stamp; None = unknown."""
        with self._lock:
            stamps = self._settled()
            if not stamps:
                return None
            return sum(stamp in self._infos for stamp in stamps) / len(stamps)

    def infos_silent_s(self, now: float) -> float | None:
        """Return for how long no camera_info has come while images did; None = that is as it was.

        One that was sent once, or now and then, is latched: it is not missed. Missed is one that
        had come several times in a few seconds.
        """
        with self._lock:
            came, alone, images = self._infos_came, self._alone_since, self._images
            if len(came) < _ENOUGH_INFOS or came[-1] - came[0] > RECENT_S or alone is None:
                return None
            goes_on = bool(images) and now - images[-1][1] <= RECENT_S
            return now - came[-1] if goes_on and now - alone > RECENT_S else None

    def findings(self, now: float) -> Iterator[Finding]:
        """Say what does not fit in the messages of the last seconds."""
        with self._lock:
            images = [stamp for stamp, when in self._images if now - when <= RECENT_S]
            infos = list(self._infos)
            lately = sum(now - when <= RECENT_S for _, when in self._infos.values())
            settled, change, frames = self._settled(), self._change, self._frames
        if len(images) >= _ENOUGH_IMAGES and not any(images):
            yield WARN, _NO_STAMPS
        elif len(settled) >= _ENOUGH_IMAGES and lately >= _ENOUGH_INFOS and images:
            yield from _unsynchronised(settled, infos)
        if change is not None and now - change[1] <= _CHANGED_LATELY_S:
            yield WARN, f"camera_info changed ({change[0]}; change {self.changes}); {_CHANGED}"
        if all(frames) and frames[0] != frames[1]:
            who = f"the images' frame is {frames[0]!r}, camera_info's is {frames[1]!r}"
            yield WARN, f"{who}: {_OTHER_FRAME}"

    def _forget(self, until: float) -> None:
        """Drop all images, and the stamps of what came as camera_info until this time."""
        self._own_before = self._is_expected()
        self._images.clear()
        for stamp in [s for s, (_, when) in self._infos.items() if when <= until]:
            del self._infos[stamp]

    def _oldest_info(self) -> float:
        return next(iter(self._infos.values()))[1]

    def _is_expected(self, stamp: int | None = None) -> bool:
        """Say whether images other than this one lately got a camera_info of their own."""
        others = (s for s, _ in reversed(self._images) if s != stamp)
        before = list(islice(others, _NEIGHBOURS))
        if len(before) < _NEIGHBOURS and self._own_before:
            return True  # a bag that has just started again is the same camera
        return any(s in self._infos for s in before)

    def _settled(self) -> list[int]:
        """Return the stamps of the images whose camera_info has had time to come."""
        newest = self._images[-1][0] if self._images else 0
        return [stamp for stamp, _ in self._images if newest - stamp >= _NEWEST_NS]


def _too_many(count: int, least: int, age_s: float) -> bool:
    return count > least and (age_s > RECENT_S or count > _MOST_KEPT)


def _unsynchronised(images: list[int], infos: list[int]) -> Iterator[Finding]:
    if set(images) & set(infos):
        return
    distances = [min(abs(image - info) for info in infos) for image in images]
    apart = statistics.median(distances) * 1e-6
    yield (
        WARN,
        (
            f"camera_info never has an image's stamp (the nearest is {apart:.1f} ms away), so the "
            "newest is taken for each image; publish both with one stamp in the camera's driver"
        ),
    )


def _difference(one: CameraInfo, other: CameraInfo) -> str:
    """Name the first thing in which two calibrations differ, with both values; empty = none."""
    for name in _CALIBRATION:
        before, after = getattr(one, name), getattr(other, name)
        if isinstance(before, int | str):
            if before != after:
                return f"{name} {before} -> {after}"
            continue
        if len(before) != len(after):
            return f"{len(before)} -> {len(after)} numbers in {name.upper()}"
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and not (old != old and new != new):  # NaN stays NaN
                return f"{name.upper()}[{number}] {old:g} -> {new:g}"
    return "" if one.roi == other.roi else "region of interest"
