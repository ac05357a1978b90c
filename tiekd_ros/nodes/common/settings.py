"""Settings of the nodes themselves; `parameter_groups` adds those of the packages they use."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.core.devices import RUNTIMES
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.core.settings import Settings, setting


@dataclass(frozen=True)
class CommonSettings(Settings):
    """Settings of both nodes."""

    state_dir: str = setting(
        "", "state folder; empty = $XDG_STATE_HOME/tiekd, or ~/.local/state/tiekd", read_only=True
    )
    autostart: bool = setting(
        True, "configure and activate at start, without a lifecycle manager", read_only=True
    )
    image_transport: str = setting(
        "raw",
        "how images come: raw (sensor_msgs/Image), or compressed (sensor_msgs/CompressedImage, "
        "JPEG or PNG, on <image>/compressed)",
        choices=("raw", "compressed"),
        read_only=True,
    )
    input_reliability: str = setting(
        "auto",
        "quality of service of the image subscription; auto = reliable where the camera is, "
        "best_effort elsewhere",
        choices=("auto", "best_effort", "reliable"),
        read_only=True,
    )
    input_durability: str = setting(
        "auto",
        "quality of service of the image subscription; auto = transient_local where the camera "
        "is, volatile elsewhere",
        choices=("auto", "volatile", "transient_local"),
        read_only=True,
    )
    input_depth: int = setting(
        5,
        "images that the middleware keeps for the node; what is stale is dropped, and counted, "
        "behind it",
        minimum=1,
        maximum=100,
        read_only=True,
    )
    rectify: bool = setting(
        False,
        "take the lens's distortion out of the images by camera_info's model (plumb_bob, "
        "rational_polynomial or equidistant); the same for both nodes",
        read_only=True,
    )


@dataclass(frozen=True)
class DepthSettings(CommonSettings):
    """Settings of depth_node."""

    device: str = setting("auto", "where the student runs: auto, cpu, cuda, cuda:N", read_only=True)
    runtime: str = setting(
        "auto",
        "what runs the student; auto = the fastest that is installed, measured at start",
        choices=RUNTIMES,
        read_only=True,
    )
    threads: int = setting(
        0,
        "CPU threads of the network; 0 = half the cores",
        minimum=0,
        maximum=512,
        read_only=True,
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
    min_range_m: float = setting(
        0.0,
        "nearer depth becomes -Inf; 0 = the student's own",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    max_range_m: float = setting(
        0.0,
        "farther depth becomes +Inf; 0 = the student's own",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    min_confidence: float = setting(
        0.0,
        "depth of lower or unknown confidence becomes NaN; 0 = keep all. Each student has its own "
        "typical confidence, often below 0.5: choose by the confidence topic, or the median "
        "confidence in the diagnostics",
        minimum=0.0,
        maximum=1.0,
    )

    output_reliability: str = setting(
        "reliable",
        "quality of service of what is published; reliable serves every subscriber, best_effort "
        "none that asks for reliable",
        choices=("reliable", "best_effort"),
        read_only=True,
    )
    output_depth: int = setting(
        2,
        "messages kept for a reliable subscriber that is slow; few, for old depth is useless",
        minimum=1,
        maximum=100,
        read_only=True,
    )
    preview_min_m: float = setting(
        0.0,
        "depth of the preview's near colour; 0 = the nearest that is published",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    preview_max_m: float = setting(
        0.0,
        "depth of the preview's far colour; 0 = the farthest that is published",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
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

    log_confidence: bool = setting(
        False,
        "keep the student's mean confidence with each frame; makes depth_node publish confidence",
        read_only=True,
    )


@dataclass(frozen=True)
class CameraSettings(Settings):
    """Settings of camera_node."""

    source: str = setting(
        "synthetic",
        "synthetic (the procedural world), a folder of images with K.txt or camera.yaml, a bag "
        "(folder or file), a video file, or a webcam (/dev/video0, or webcam for the first)",
        read_only=True,
    )
    pace: str = setting(
        "auto",
        "when images are published: as they were recorded, or at rate_hz; auto = as recorded for "
        "bags and videos, as they come for webcams, else at rate_hz",
        choices=("auto", "recorded", "rate"),
        read_only=True,
    )
    rate_hz: float = setting(
        10.0,
        "frames a second, where pace says so; of a webcam at most so many",
        unit="Hz",
        minimum=0.1,
        maximum=240.0,
        read_only=True,
    )
    loop: bool = setting(
        True, "start again after the last image; else the node ends with it", read_only=True
    )
    stamps: str = setting(
        "now",
        "stamps of recorded images: the present time, or the recorded ones (of a video: the time "
        "since its start)",
        choices=("now", "recorded"),
        read_only=True,
    )
    image_topic: str = setting(
        "", "topic of a bag's images; empty = the only one it has", read_only=True
    )
    camera_info: str = setting(
        "",
        "calibration of a bag, video or webcam: a file (K.txt, or the camera.yaml of "
        "camera_calibration) or a bag's topic; empty = camera_info beside a bag's images",
        read_only=True,
    )
    frame_id: str = setting(
        "camera_optical_frame",
        "coordinate frame in the headers; of a bag's images only where they have none",
        read_only=True,
    )
    width: int = setting(
        320,
        "image width of the synthetic world",
        unit="px",
        minimum=16,
        maximum=4096,
        read_only=True,
    )
    height: int = setting(
        240,
        "image height of the synthetic world",
        unit="px",
        minimum=16,
        maximum=4096,
        read_only=True,
    )
    seed: int = setting(
        0, "seed of the synthetic world", minimum=0, maximum=2**31 - 1, read_only=True
    )
    period_s: float = setting(
        60.0,
        "time of one turn through the synthetic world",
        unit="s",
        minimum=5.0,
        maximum=3600.0,
        read_only=True,
    )
