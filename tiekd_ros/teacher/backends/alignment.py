"""A teacher whose numbers are fitted to metres, once, when it starts; only where that is asked for.

The fit (see `fitting`) is made with one camera. An image tells a network how large things appear,
not how far they are: stretch a scene along the optical axis by f' / f, and a camera of focal length
f' takes the very image that one of f took before, since f x / z is the same. The network then
answers the same, and depth is f' / f times as large. So metres by the fit times the ratio of the
focal lengths are metres for the other camera, whatever the numbers mean: they are equal, so what
the fit makes of them is. It has to be one ratio for rows and columns: an image that reaches the
network wider or narrower than the fit's shows the network another scene, and beyond `MOST_UNEQUAL`
it is refused. This is why metric networks are trained for one canonical camera
(Metric3D, arXiv 2307.10984; Depth Pro, arXiv 2410.02073, section 3.2).

What it takes for granted is that a network goes by how large things appear, in pixels of its
input. It may go by perspective too, which betrays the focal length; the more a field of view
differs from the fit's, the more does the rest, which no frame has judged. So beyond
`LARGEST_STRETCH` an image is refused. A network that takes the focal length has done its part
already, and is left alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tiekd_ros.camera import Intrinsics
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.images import DepthMap, RgbImage
from tiekd_ros.teacher.backend import Backend, BackendRefusal, check_request, infer_all
from tiekd_ros.teacher.backends.batched import BatchedBackend, seen_focal_px
from tiekd_ros.teacher.backends.fingerprint import fingerprint
from tiekd_ros.teacher.backends.fitting import METHOD, fit_to_folder
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity

_LOG = logging.getLogger(__name__)

LARGEST_STRETCH = 1.5
"""Ratio of focal lengths, either way, up to which a fit serves another camera."""
MOST_UNEQUAL = 1.1
"""Up to so much, either way, may that ratio differ between rows and columns."""
_WAY_OUT = "the server has to be fitted to frames of such a camera, of such a size (--align)"


class AlignedBackend(BatchedBackend):
    """A teacher whose numbers are turned into metres by a fit; metric, whatever it was before.

    For a camera of another focal length than the fit's, metres are stretched (see the module); an
    image without intrinsics counts as one of the fit's camera, and has to have its aspect.

    What the fit was made of is part of the version: fitted to other frames, it is another teacher.
    What came out is not, for its last digits change with the device.

    Raises:
        DatasetError: the folder cannot be read.
        BackendError: the teacher does not say what its numbers are, or the fit is too bad.
    """

    def __init__(self, backend: Backend, folder: str | Path, max_error: float) -> None:
        """Fit `backend` to the measured depth in `folder`.

        Args:
            backend: the teacher, of any meaning.
            folder: images/, depth/ and K.txt, as `RgbdFolder` reads them.
            max_error: largest median relative error that is served.
        """
        self._backend = backend
        frames = RgbdFolder(Path(folder).expanduser())
        self.fit = fit_to_folder(backend, frames, max_error)
        self._camera, self._camera_size = frames.intrinsics, frames.image_size
        before = backend.identity
        made_of = [before.version, self.fit.meaning, METHOD]
        self.identity = TeacherIdentity(
            name=before.name.removesuffix(f" ({self.fit.meaning})"),
            version=f"{before.version}-aligned-{fingerprint(frames.files, made_of)}",
            metric=True,
        )
        _LOG.info("%s fitted to %s: %s", before.name, folder, self.fit)

    def check(self, request: DepthRequest, height: int, width: int) -> None:
        """Refuse what the teacher refuses, and a focal length too far from the fit's."""
        check_request(self._backend, request, height, width)
        self._stretch(request, height, width)

    def infer_batch(
        self, images: Sequence[RgbImage], requests: Sequence[DepthRequest]
    ) -> list[DepthAnswer]:
        """Label images of one size in metres.

        Raises:
            BackendRefusal: as `check`, and where all of an image is farther than the fit holds.
        """
        height, width = images[0].shape[:2]
        stretches = [self._stretch(request, height, width) for request in requests]
        answers = infer_all(self._backend, images, requests)
        return [
            DepthAnswer(self._metres(answer.depth, stretch), answer.confidence)
            for answer, stretch in zip(answers, stretches, strict=True)
        ]

    def _metres(self, values: DepthMap, stretch: float) -> DepthMap:
        depth = self.fit.metres(values, stretch)
        # What the network itself does not know is not the fit's doing, nor the image's.
        if np.isnan(depth).all() and not np.isnan(values).all():
            raise BackendRefusal(
                f"all of it is beyond {self.fit.farthest_m * stretch:.3g} m, where the fit to "
                "metres was never seen to hold"
            )
        return depth

    def _stretch(self, request: DepthRequest, height: int, width: int) -> float:
        """Return the focal length over the fit's, both in pixels of the network's input."""
        if self.fit.focal_px is None:
            return 1.0
        camera = request.intrinsics or self._supposed(height, width)
        seen = seen_focal_px(self._backend, camera, height, width)
        assert seen is not None  # as for the fit: it is the network that decides
        in_x, in_y = (own / fitted for own, fitted in zip(seen, self.fit.focal_px, strict=True))
        if not all(_within(ratio, LARGEST_STRETCH) for ratio in (in_x, in_y)):
            raise BackendRefusal(
                f"this {width}x{height} image reaches the network with {_focals(seen)}, and the "
                f"network was fitted to metres at {_focals(self.fit.focal_px)}: beyond a factor "
                f"of {LARGEST_STRETCH:g} the fit says little; {_WAY_OUT}"
            )
        if not _within(in_x / in_y, MOST_UNEQUAL):
            raise BackendRefusal(
                f"this {width}x{height} image reaches the network stretched, with "
                f"{_focals(seen)}, and the network was fitted to metres at "
                f"{_focals(self.fit.focal_px)}: the fit says nothing of such images; send one of "
                f"the fit's aspect, or {_WAY_OUT}"
            )
        return math.sqrt(in_x * in_y)

    def _supposed(self, height: int, width: int) -> Intrinsics:
        """Return the fit's camera, at the size of an image whose own is not known."""
        own_width, own_height = self._camera_size
        factor = width / own_width
        if not _within(factor * own_height / height, MOST_UNEQUAL):
            raise BackendRefusal(
                f"this {width}x{height} image comes without intrinsics and has another aspect "
                f"than the {own_width}x{own_height} frames of the fit to metres, so that it is "
                "not of their camera; send `intrinsics` with it"
            )
        return self._camera.scaled(factor, factor)


def _within(ratio: float, largest: float) -> bool:
    return 1 / largest <= ratio <= largest


def _focals(pixels: tuple[float, float]) -> str:
    x, y = (f"{each:.0f}" for each in pixels)
    return f"a focal length of {x if x == y else f'{x} (columns {y})'} pixels"
