"""How a teacher's requests are answered: the limits that hold wherever its servicer runs."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.settings import Settings, setting


@dataclass(frozen=True)
class ServiceSettings(Settings):
    """How requests are answered."""

    workers: int = setting(
        1, "batches that the backend labels at the same time", minimum=1, maximum=64
    )
    max_batch: int = setting(
        8,
        "images of one size that go through the backend together, where it can; 1 = never",
        minimum=1,
        maximum=1024,
    )
    batch_delay_ms: float = setting(
        5.0,
        "how long an image waits for others to make a batch with, while the backend is idle",
        unit="ms",
        minimum=0.0,
        maximum=10000.0,
    )
    max_waiting: int = setting(
        128,
        "requests that may wait for the backend; more are told to come back",
        minimum=0,
        maximum=1024,
    )
    max_waiting_mb: int = setting(
        1024,
        "memory that the requests inside may take together, as they came and decoded; more are "
        "told to come back",
        unit="MiB",
        minimum=1,
        maximum=1 << 20,
    )
    max_pixels: int = setting(
        16_000_000, "largest image that is decoded", unit="pixels", minimum=1, maximum=1 << 30
    )
    max_image_mb: int = setting(
        16, "largest encoded image that is read", unit="MiB", minimum=1, maximum=1024
    )
    stuck_after_s: float = setting(
        300.0,
        "a batch that takes longer means that the backend hangs: the server is not ready then, and "
        "systemd, where it watches, starts it again",
        unit="s",
        minimum=1.0,
        maximum=86400.0,
    )
    depth_type: str = setting(
        "FP16", "number type of the depth on the wire", choices=("FP16", "FP32")
    )
