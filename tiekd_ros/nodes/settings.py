"""Settings of the nodes themselves; those of the rooms they use are declared beside these."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting
from tiekd_ros.student import RUNTIMES


@dataclass(frozen=True)
class CommonSettings(Settings):
    """What both nodes have."""

    state_dir: str = setting(
        "", "state folder; empty = $XDG_STATE_HOME/tiekd, or ~/.local/state/tiekd", read_only=True
    )
    autostart: bool = setting(
        True, "configure and activate at start, without a lifecycle manager", read_only=True
    )
    input_reliability: str = setting(
        "auto",
        "quality of service of the image subscription; auto = reliable where the camera is, "
        "best_effort elsewhere",
        choices=("auto", "best_effort", "reliable"),
        read_only=True,
    )


@dataclass(frozen=True)
class DepthSettings(CommonSettings):
    """What depth_node runs and publishes."""

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
        "depth of lower or unknown confidence becomes NaN; 0 = keep all",
        minimum=0.0,
        maximum=1.0,
    )

    def check(self) -> None:
        """Refuse a range that holds no depth."""
        if 0 < self.max_range_m <= self.min_range_m:
            raise InvalidSettingError(
                f"max_range_m must be greater than min_range_m = {self.min_range_m:g} m (or 0 for "
                f"the student's own), got {self.max_range_m:g} m"
            )


@dataclass(frozen=True)
class CompanionSettings(CommonSettings):
    """What companion_node has beside the settings of its rooms."""

    log_confidence: bool = setting(
        False,
        "keep the student's mean confidence with each frame; makes depth_node publish confidence",
        read_only=True,
    )


@dataclass(frozen=True)
class CameraSettings(Settings):
    """What camera_node plays."""

    source: str = setting(
        "synthetic",
        "synthetic (the procedural world), or a folder of images with K.txt or camera.yaml",
        read_only=True,
    )
    rate_hz: float = setting(
        10.0, "frames a second", unit="Hz", minimum=0.1, maximum=240.0, read_only=True
    )
    loop: bool = setting(True, "start again after the last image of a folder", read_only=True)
    stamps: str = setting(
        "now",
        "stamps of a folder's images: the present time, or the recorded ones",
        choices=("now", "recorded"),
        read_only=True,
    )
    frame_id: str = setting(
        "camera_optical_frame", "coordinate frame in the headers", read_only=True
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
