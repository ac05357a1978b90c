"""Settings of an offline training; without torch, since the command line makes options of them."""

from __future__ import annotations

from dataclasses import dataclass

from tiekd_ros.core.settings import Settings, setting


@dataclass(frozen=True)
class OfflineSettings(Settings):
    """Budget and optimiser of one offline training."""

    epochs: int = setting(24, "passes over the data", minimum=1, maximum=10**5)
    iterations: int = setting(
        0, "optimiser steps; 0 = as many as the epochs have", minimum=0, maximum=10**8
    )
    batch_size: int = setting(16, "images per step, of all devices", minimum=1, maximum=4096)
    learning_rate: float = setting(1e-3, "peak learning rate", minimum=1e-7, maximum=1.0)
    beta1: float = setting(0.9, "AdamW's first decay", minimum=0.0, maximum=0.9999)
    beta2: float = setting(0.999, "AdamW's second decay", minimum=0.0, maximum=0.99999)
    weight_decay: float = setting(0.01, "AdamW's weight decay", minimum=0.0, maximum=1.0)
    clip_norm: float = setting(10.0, "gradients are clipped to this norm", minimum=0.0, maximum=1e6)
    batch_norm: str = setting(
        "batch",
        "batch-norm statistics in training: of each batch (of all GPUs), or kept as they are",
        choices=("batch", "frozen"),
    )
    precision: str = setting(
        "float32", "arithmetic of the network", choices=("float32", "bfloat16")
    )
    height: int = setting(0, "network input; 0 = from the data", unit="px", minimum=0, maximum=4096)
    width: int = setting(0, "network input; 0 = from the data", unit="px", minimum=0, maximum=4096)
    validation_share: float = setting(
        0.1,
        "share of the data, its last part, that validates where no validation split is given",
        minimum=0.0,
        maximum=0.5,
    )
    validate_every: int = setting(1, "epochs between validations", minimum=1, maximum=10**5)
    seed: int = setting(
        0, "seed of weights, shuffling and augmentation", minimum=0, maximum=2**31 - 1
    )


@dataclass(frozen=True)
class HousekeepingSettings(Settings):
    """How a run is kept and fed; may differ when it is resumed."""

    snapshot_every: int = setting(
        0, "steps between snapshots beside those of each epoch; 0 = none", minimum=0, maximum=10**8
    )
    snapshot_seconds: float = setting(
        600.0, "time between snapshots at most; 0 = no limit", unit="s", minimum=0.0, maximum=1e6
    )
    keep_snapshots: int = setting(3, "how many snapshots stay", minimum=1, maximum=1000)
    picture_every: int = setting(500, "steps between pictures; 0 = none", minimum=0, maximum=10**8)
    log_every: int = setting(10, "steps between points of the curves", minimum=1, maximum=10**6)
    workers: int = setting(
        -1, "processes that read images, per device; -1 = by the cores", minimum=-1, maximum=256
    )
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda"))
    skip_bad: bool = setting(False, "pass over items that cannot be read, and list them")
