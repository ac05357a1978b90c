"""Settings of the nodes themselves; `parameter_groups` adds those of the packages they use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from tiekd_ros.core.devices import RUNTIMES
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting

_fixed = partial(setting, read_only=True)
"""A setting that is read at start only."""
_metres = partial(setting, 0.0, unit="m", minimum=0.0, maximum=1000.0)
"""A distance that is 0 where another decides it."""
_pixels = partial(setting, unit="px", minimum=16, maximum=4096, read_only=True)


@dataclass(frozen=True)
class CommonSettings(Settings):
    """Settings of both nodes."""

    state_dir: str = _fixed(
        "", "state folder; empty = $XDG_STATE_HOME/tiekd, or ~/.local/state/tiekd"
    )
    autostart: bool = _fixed(True, "configure and activate at start, without a lifecycle manager")
    image_transport: str = _fixed(
        "raw",
        "how images come: raw (sensor_msgs/Image), or compressed (sensor_msgs/CompressedImage, "
        "JPEG or PNG, on <image>/compressed)",
        choices=("raw", "compressed"),
    )
    input_reliability: str = _fixed(
        "auto",
        "quality of service of the image subscription; auto = reliable where the camera is, "
        "best_effort elsewhere",
        choices=("auto", "best_effort", "reliable"),
    )
    input_durability: str = _fixed(
        "auto",
        "quality of service of the image subscription; auto = transient_local where the camera "
        "is, volatile elsewhere",
        choices=("auto", "volatile", "transient_local"),
    )
    input_depth: int = _fixed(
        5,
        "images that the middleware keeps for the node; what is stale is dropped, and counted, "
        "behind it",
        minimum=1,
        maximum=100,
    )
    rectify: bool = _fixed(
        False,
        "take the lens's distortion out of the images by camera_info's model (plumb_bob, "
        "rational_polynomial or equidistant); the same for both nodes",
    )


@dataclass(frozen=True)
class DepthSettings(CommonSettings):
    """Settings of depth_node."""

    device: str = _fixed("auto", "where the student runs: auto, cpu, cuda, cuda:N")
    runtime: str = _fixed(
        "auto",
        "what runs the student; auto = the fastest that is installed, measured at start",
        choices=RUNTIMES,
    )
    threads: int = _fixed(
        0, "CPU threads of the network; 0 = half the cores", minimum=0, maximum=512
    )
    encoding: str = setting(
        "32FC1",
        "depth as 32FC1 (metres) or 16UC1 (millimetres)",
        choices=("32FC1", "16UC1"),
    )
    resolution: str = setting(
        "image",
        "size of the depth image: that of the camera's image, or of the network's input",
        choices=("image", "network"),
    )
    min_range_m: float = _metres("nearer depth becomes -Inf; 0 = the student's own")
    max_range_m: float = _metres("farther depth becomes +Inf; 0 = the student's own")
    min_confidence: float = setting(
        0.0,
        "depth of lower or unknown confidence becomes NaN; 0 = keep all. Of pixels with confidence "
        "c, a share c is within 10 % of the teacher's depth (companion: confidence.tolerance)",
        minimum=0.0,
        maximum=1.0,
    )

    output_reliability: str = _fixed(
        "reliable",
        "quality of service of what is published; reliable serves every subscriber, best_effort "
        "none that asks for reliable",
        choices=("reliable", "best_effort"),
    )
    output_depth: int = _fixed(
        2,
        "messages kept for a reliable subscriber that is slow; few, for old depth is useless",
        minimum=1,
        maximum=100,
    )
    preview_min_m: float = _metres(
        "depth of the preview's near colour; 0 = the nearest that is published"
    )
    preview_max_m: float = _metres(
        "depth of the preview's far colour; 0 = the farthest that is published"
    )
    preview_colormap: str = setting(
        "turbo",
        "colours of the preview, OpenCV's names; near = the map's last colour, unknown = grey",
        choices=("turbo", "inferno", "magma", "plasma", "viridis", "jet"),  # none goes through grey
    )

    def check(self) -> None:
        """Refuse a range that holds no depth."""
        if 0 < self.preview_max_m <= self.preview_min_m:
            raise InvalidSettingError(
                f"preview_max_m must be greater than preview_min_m = {self.preview_min_m:g} m (or "
                f"0 for the farthest that is published), got {self.preview_max_m:g} m"
            )
        if 0 < self.max_range_m <= self.min_range_m:
            raise InvalidSettingError(
                f"max_range_m must be greater than min_range_m = {self.min_range_m:g} m (or 0 for "
                f"the student's own), got {self.max_range_m:g} m"
            )


@dataclass(frozen=True)
class CompanionSettings(CommonSettings):
    """Settings of companion_node itself."""

    log_confidence: bool = _fixed(
        False,
        "keep the student's mean confidence with each frame; makes depth_node publish confidence",
    )


@dataclass(frozen=True)
class CameraSettings(Settings):
    """Settings of camera_node."""

    source: str = _fixed(
        "synthetic",
        "synthetic (the procedural world), a folder of images with K.txt or camera.yaml, a bag "
        "(folder or file), a video file, or a webcam (/dev/video0, or webcam for the first)",
    )
    pace: str = _fixed(
        "auto",
        "when images are published: as they were recorded, or at rate_hz; auto = as recorded for "
        "bags and videos, as they come for webcams, else at rate_hz",
        choices=("auto", "recorded", "rate"),
    )
    rate_hz: float = _fixed(
        10.0,
        "frames a second, where pace says so; of a webcam at most so many",
        unit="Hz",
        minimum=0.1,
        maximum=240.0,
    )
    loop: bool = _fixed(True, "start again after the last image; else the node ends with it")
    stamps: str = _fixed(
        "now",
        "stamps of recorded images: the present time, or the recorded ones (of a video: the time "
        "since its start)",
        choices=("now", "recorded"),
    )
    image_topic: str = _fixed("", "topic of a bag's images; empty = the only one it has")
    camera_info: str = _fixed(
        "",
        "calibration of a bag, video or webcam: a file (K.txt, or the camera.yaml of "
        "camera_calibration) or a bag's topic; empty = camera_info beside a bag's images",
    )
    frame_id: str = _fixed(
        "camera_optical_frame",
        "coordinate frame in the headers; of a bag's images only where they have none",
    )
    width: int = _pixels(320, "image width of the synthetic world")
    height: int = _pixels(240, "image height of the synthetic world")
    seed: int = _fixed(0, "seed of the synthetic world", minimum=0, maximum=2**31 - 1)
    period_s: float = _fixed(
        60.0, "time of one turn through the synthetic world", unit="s", minimum=5.0, maximum=3600.0
    )
