"""Exact depth of the synthetic world, rendered for the image's stamp, as a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.images import RgbImage, thumbnail, thumbnail_distances
from tiekd_ros.core.settings import setting
from tiekd_ros.teacher.backend import Backend, BackendSettings
from tiekd_ros.teacher.errors import BackendRefusal
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.worlds import IndoorWorld, WorldSettings

# Mean grey-level difference of thumbnails up to which a picture is the world's own view.
# Measured: JPEG at quality 60, halving or noise of 8 grey levels make 0.3 to 0.6, a 64x48
# image 1.1; the view a thirtieth of a second later is about 6 away, another seed about 40.
LARGEST_DISTANCE = 4.0


@dataclass(frozen=True)
class SyntheticSettings(BackendSettings):
    """The world that a `SyntheticBackend` renders."""

    ARGUMENT = "seed"

    seed: int = setting(
        0, "seed of the world; the camera's must be the same", minimum=0, maximum=2**31 - 1
    )
    period_s: float = setting(
        60.0, "time of the camera's one round", unit="s", minimum=1.0, maximum=86400.0
    )

    def build(self) -> Backend:
        """Make the world."""
        return SyntheticBackend(WorldSettings(seed=self.seed, period_s=self.period_s))


class SyntheticBackend:
    """Renders `IndoorWorld` at the request's stamp and answers with its exact depth.

    It refuses a picture that is not of this world at this time.
    """

    def __init__(self, settings: WorldSettings | None = None) -> None:
        """Build the world once."""
        settings = settings or WorldSettings()
        self._world = IndoorWorld(settings)
        self.identity = TeacherIdentity(
            name="synthetic", version=f"seed-{settings.seed}", metric=True
        )

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Return the world's depth in metres at the image's size and intrinsics.

        Raises:
            BackendRefusal: the picture is not this world's view at the request's stamp.
        """
        height, width = image.shape[:2]
        try:
            view = self._world.render(request.stamp_ns, width, height, request.intrinsics)
        except InvalidSettingError as error:
            raise BackendRefusal(f"this world has no such view: {error}") from error
        distance = float(thumbnail_distances(thumbnail(image), thumbnail(view.image)[None])[0])
        if distance > LARGEST_DISTANCE:
            raise BackendRefusal(
                f"unknown image: it differs by {distance:.1f} grey levels from this world's view "
                f"at {request.stamp_ns} ns (at most {LARGEST_DISTANCE:g}); camera and teacher "
                "need the same seed, period and intrinsics, and the image its own stamp"
            )
        return DepthAnswer(view.depth)
