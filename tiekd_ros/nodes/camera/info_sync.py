"""Matching camera_info with images by their stamps, and what does not fit in either.

All times are monotonic seconds, all stamps nanoseconds.
"""

from __future__ import annotations

import math
import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from tiekd_ros.core.camera import CameraModel
from tiekd_ros.nodes.common.conversions import stamp_ns
from tiekd_ros.nodes.common.reporting import WARN, Finding

RECENT_S = 5.0
"""What is older says nothing of the present."""
_CHANGE_SHOWN_S = 10.0
_IMAGES_KEPT, _INFOS_KEPT, _MOST_KEPT = 30, 60, 1000
"""So many are kept however old they are, and so many at most; between, those of RECENT_S."""
_NEIGHBOURS = 4
"""An image's camera_info is waited for where one of so many last images has got its own."""
_MATCHES_KEPT = 100
"""The last requests for a calibration, of which a share is reported."""
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
_COMPARED = ("width", "height", "distortion_model", "d", "k", "r", "p", "binning", "roi")


class CameraInfoSync:
    """The stamps and calibrations of the last seconds.

    Messages are added by the executor's thread; the thread of the frames asks `model_for`, and
    may wait there for a camera_info that is on its way.
    """

    def __init__(self) -> None:
        self._lock = threading.Condition()  # guards all below; notified of each camera_info
        self._images: deque[tuple[int, float]] = deque()  # (stamp, when)
        self._models: OrderedDict[int, tuple[CameraModel, float]] = OrderedDict()  # by stamp
        self._infos_came: deque[float] = deque(maxlen=_ENOUGH_INFOS)
        self._alone_since: float | None = None  # since when images come without any camera_info
        self._frames = ("", "")  # frame_id of the image, of the camera_info
        self._change: tuple[str, float] | None = None  # (what, when)
        self._matches: deque[bool] = deque(maxlen=_MATCHES_KEPT)  # whether the stamp was the same
        self._matched_before = False  # images got their own before the stamps were forgotten
        self._closed = False
        self.newest: CameraModel | None = None
        """The calibration that came last."""
        self.infos = 0
        """How many camera_info came."""
        self.changes = self.jumps = 0
        """How often the calibration changed, and the images' stamps went back."""

    def add_image(self, message: Image | CompressedImage, now: float) -> float:
        """Add an image's stamp; return by how many seconds it went back, mostly 0."""
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
            self._frames = (message.header.frame_id, self._frames[1])
        return max(0.0, (last - stamp) * 1e-9)

    def add_info(self, message: CameraInfo, now: float) -> None:
        """Add a calibration."""
        model, stamp = CameraModel.from_message(message), stamp_ns(message.header)
        with self._lock:
            if self.newest is not None:
                what = _difference(self.newest, model)
                if what:
                    self._change = (what, now)
                    self.changes += 1
            self.newest, self._alone_since = model, None
            self._infos_came.append(now)
            self._models.pop(stamp, None)  # to the end, since the order is that of arrival
            self._models[stamp] = (model, now)
            while _too_many(
                len(self._models), _INFOS_KEPT, now - next(iter(self._models.values()))[1]
            ):
                self._models.popitem(last=False)
            self.infos += 1
            self._frames = (self._frames[0], message.header.frame_id)
            self._lock.notify_all()

    def model_for(
        self, stamp: int, patience_s: float = 0.0, first_s: float = 0.0
    ) -> CameraModel | None:
        """Return the calibration with an image's stamp, the newest where there is none.

        Args:
            stamp: of the image.
            patience_s: how long to wait for a camera_info that comes after its image, where that
                of the images before has come. Not in the thread in which messages come.
            first_s: how long to wait where no camera_info at all has come yet; not there either.
        """
        with self._lock:
            if first_s > 0 and self.newest is None:
                self._lock.wait_for(lambda: self.newest is not None or self._closed, first_s)
            if patience_s > 0 and stamp not in self._models and self._is_expected(stamp):
                self._lock.wait_for(lambda: stamp in self._models or self._closed, patience_s)
            found = self._models.get(stamp)
            if self.newest is not None:
                self._matches.append(found is not None)
            return self.newest if found is None else found[0]

    def forget(self) -> None:
        """Drop all stamps, since time has jumped; the newest calibration stays the newest."""
        with self._lock:
            self._forget(math.inf)

    def close(self) -> None:
        """End all waiting."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()

    def matched_share(self) -> float | None:
        """Return the share of the last calibrations that had their image's stamp."""
        with self._lock:
            return sum(self._matches) / len(self._matches) if self._matches else None

    def synchronised_share(self) -> float | None:
        """Return the share of the last images with a camera_info of their stamp; None = unknown."""
        with self._lock:
            stamps = self._settled()
            if not stamps:
                return None
            return sum(stamp in self._models for stamp in stamps) / len(stamps)

    def infos_silent_s(self, now: float) -> float | None:
        """Return for how long no camera_info has come while images did; None = that is as it was.

        One that was sent once, or now and then, is latched: it is not missed. Missed is one that
        had come several times in a few seconds.
        """
        with self._lock:
            came, alone, images = self._infos_came, self._alone_since, self._images
            if len(came) < _ENOUGH_INFOS or came[-1] - came[0] > RECENT_S or alone is None:
                return None
            flows = bool(images) and now - images[-1][1] <= RECENT_S
            return now - came[-1] if flows and now - alone > RECENT_S else None

    def findings(self, now: float) -> Iterator[Finding]:
        """Yield what does not fit in the messages of the last seconds."""
        with self._lock:
            images = [stamp for stamp, when in self._images if now - when <= RECENT_S]
            infos = list(self._models)
            recent = sum(now - when <= RECENT_S for _, when in self._models.values())
            settled, change, frames = self._settled(), self._change, self._frames
        if len(images) >= _ENOUGH_IMAGES and not any(images):
            yield WARN, _NO_STAMPS
        elif len(settled) >= _ENOUGH_IMAGES and recent >= _ENOUGH_INFOS and images:
            yield from _unsynchronised(settled, infos)
        if change is not None and now - change[1] <= _CHANGE_SHOWN_S:
            yield WARN, f"camera_info changed ({change[0]}; change {self.changes}); {_CHANGED}"
        if all(frames) and frames[0] != frames[1]:
            who = f"the images' frame is {frames[0]!r}, camera_info's is {frames[1]!r}"
            yield WARN, f"{who}: {_OTHER_FRAME}"

    def _forget(self, until: float) -> None:
        """Drop all images, and the stamps of what came as camera_info until this time."""
        self._matched_before = self._is_expected()
        self._images.clear()
        for stamp in [s for s, (_, when) in self._models.items() if when <= until]:
            del self._models[stamp]

    def _is_expected(self, stamp: int | None = None) -> bool:
        """Return whether images other than this one recently got a camera_info of their own."""
        others = (s for s, _ in reversed(self._images) if s != stamp)
        before = list(islice(others, _NEIGHBOURS))
        if len(before) < _NEIGHBOURS and self._matched_before:
            return True  # a bag that has just started again is the same camera
        return any(s in self._models for s in before)

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
        f"camera_info never has an image's stamp (the nearest is {apart:.1f} ms away), so the "
        "newest is taken for each image; publish both with one stamp in the camera's driver",
    )


def _difference(one: CameraModel, other: CameraModel) -> str:
    """Return the first thing in which two calibrations differ, with both values; empty = none."""
    for name in _COMPARED:
        before: Any = getattr(one, name)
        after: Any = getattr(other, name)
        if name in ("binning", "roi", "width", "height", "distortion_model"):
            if before != after:
                return f"{name} {before} -> {after}"
            continue
        if len(before) != len(after):
            return f"{len(before)} -> {len(after)} numbers in {name.upper()}"
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            if old != new and not (old != old and new != new):  # NaN stays NaN
                return f"{name.upper()}[{number}] {old:g} -> {new:g}"
    return ""
