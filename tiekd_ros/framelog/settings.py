"""Settings of the frame log and of the labeller."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting


@dataclass(frozen=True)
class FrameLogSettings(Settings):
    """Quality, split and size of the frames that are kept.

    The defaults were chosen on real indoor frames (HoloLens, 540x360): sharpness 415 to 1536
    (the same frames blurred with sigma 2.3 px: 19 to 47), consecutive frames 2.3 to 66 grey
    levels apart, JPEG and sensor noise below 0.7, a brightness change of 2 levels below 1.6.
    """

    min_interval_s: float = setting(
        0.5, "shortest time between two kept frames, by stamp", unit="s", minimum=0, maximum=3600
    )
    min_sharpness: float = setting(
        40.0,
        "least variance of the Laplacian, at 320 pixels on the longer side; 0 keeps all",
        unit="grey levels^2",
        minimum=0,
        maximum=1e6,
    )
    max_clipped_share: float = setting(
        0.5, "largest share of black pixels, and of white ones", minimum=0, maximum=1
    )
    min_brightness: float = setting(
        16.0, "darkest mean of a kept image", unit="grey levels", minimum=0, maximum=255
    )
    max_brightness: float = setting(
        240.0, "brightest mean of a kept image", unit="grey levels", minimum=0, maximum=255
    )
    min_novelty: float = setting(
        2.0,
        "least mean thumbnail difference to every stored frame; 0 keeps duplicates",
        unit="grey levels",
        minimum=0,
        maximum=255,
    )
    identical_distance: float = setting(
        1.5,
        "thumbnails this near show the same view and always share a split",
        unit="grey levels",
        minimum=0,
        maximum=255,
    )
    block_s: float = setting(
        20.0, "length of a time block; a block lies in one split", unit="s", minimum=0.5,
        maximum=86400,
    )  # fmt: skip
    held_out_every: int = setting(
        5, "one time block in so many is held out, the second first", minimum=2, maximum=100
    )
    guard_share: float = setting(
        0.1,
        "share of a block that is not kept after a border where the split changes",
        minimum=0,
        maximum=0.5,
    )
    max_bytes_mb: int = setting(
        2000, "size of the frame log; the most redundant frames go first", unit="MB", minimum=1,
        maximum=10_000_000,
    )  # fmt: skip
    jpeg_quality: int = setting(92, "JPEG quality of stored images", minimum=50, maximum=100)
    lock_timeout_s: float = setting(
        5.0, "how long to wait for another program's write to end", unit="s", minimum=0, maximum=60
    )

    def check(self) -> None:
        """Refuse combinations that would break the split or keep nothing."""
        if 0 < self.min_novelty < self.identical_distance:
            raise InvalidSettingError(
                f"min_novelty {self.min_novelty:g} lies below identical_distance "
                f"{self.identical_distance:g}: frames of a slow motion would inherit their split "
                "one from the other for ever; raise min_novelty, or set it to 0 to keep duplicates"
            )
        if self.min_brightness >= self.max_brightness:
            raise InvalidSettingError(
                f"min_brightness {self.min_brightness:g} must be less than max_brightness "
                f"{self.max_brightness:g}"
            )

    @property
    def max_bytes(self) -> int:
        """The size of the frame log in bytes."""
        return self.max_bytes_mb * 1_000_000


_FRAMES_OF_A_RECORDING = 100


@dataclass(frozen=True)
class ImportSettings(FrameLogSettings):
    """Quality, split and size of the frames that are kept of a recording."""

    min_interval_s: float = setting(
        -1.0,
        "shortest time between two kept frames, by stamp; -1 = 0.5, and less where a recording is "
        f"too short to give {_FRAMES_OF_A_RECORDING} frames so",
        unit="s",
        minimum=-1,
        maximum=3600,
    )
    block_s: float = setting(
        0.0,
        "length of a time block; a block lies in one split; 0 = as the log is split, 20 in a new "
        "one",
        unit="s",
        minimum=0,
        maximum=86400,
    )
    held_out_every: int = setting(
        0,
        "one time block in so many is held out, the second first; 0 = as the log is split, 5 in a "
        "new one",
        minimum=0,
        maximum=100,
    )

    def for_recording(
        self, seconds: float, rule: tuple[float, int] | None = None
    ) -> FrameLogSettings:
        """Return the frame log's settings for a recording of this length.

        `rule` is the `block_s` and `held_out_every` that the log is split by already.

        Raises:
            InvalidSettingError: another split is asked for.
        """
        values = self.as_dict()
        usual = FrameLogSettings()
        block_s, held_out_every = rule or (usual.block_s, usual.held_out_every)
        for name, stored in (("block_s", block_s), ("held_out_every", held_out_every)):
            if rule is not None and values[name] not in (0, stored):
                raise InvalidSettingError(
                    f"{name} = {values[name]:g}: this frame log is split by {name} = {stored:g}, "
                    "and images that are neighbours must not lie in both splits; leave the option "
                    "out, or import into another state folder"
                )
            values[name] = values[name] or stored
        if self.min_interval_s < 0:
            values["min_interval_s"] = min(usual.min_interval_s, seconds / _FRAMES_OF_A_RECORDING)
        return FrameLogSettings(**values)


@dataclass(frozen=True)
class LabellerSettings(Settings):
    """Requests of the labeller to the teacher, and the size of its labels."""

    in_flight: int = setting(2, "requests to the teacher at a time", minimum=1, maximum=32)
    poll_s: float = setting(
        5.0, "how often to look for frames that another program logged", unit="s", minimum=0.01,
        maximum=3600,
    )  # fmt: skip
    retry_s: float = setting(
        1.0, "first wait after a failed request; doubles each time", unit="s", minimum=0.001,
        maximum=3600,
    )  # fmt: skip
    max_retry_s: float = setting(
        30.0, "longest wait after a failed request", unit="s", minimum=0.001, maximum=3600
    )
    starting_s: float = setting(
        0.0,
        "so long after the start a teacher without an answer is no warning, as one that starts "
        "together with the node",
        unit="s",
        minimum=0.0,
        maximum=3600,
    )
    suspect_after: int = setting(
        5,
        "refused labels of one teacher, without a believed one between, after which the teacher "
        "is suspected instead of the frames: they wait until one is believed; 0 = never",
        minimum=0,
        maximum=1000,
    )
    max_side: int = setting(
        384,
        "longer side of the labels that are asked for and kept; more than the student's input "
        "(student.pixels) is wasted; 0 = as the teacher makes them",
        unit="px",
        minimum=0,
        maximum=16384,
    )

    def check(self) -> None:
        """Refuse a cap below the first wait."""
        if self.max_retry_s < self.retry_s:
            raise InvalidSettingError(
                f"max_retry_s {self.max_retry_s:g} must be at least retry_s {self.retry_s:g}"
            )
