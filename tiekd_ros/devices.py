"""Which device torch computes on."""

from __future__ import annotations

import torch

from tiekd_ros.errors import InvalidSettingError


def choose_device(name: str) -> torch.device:
    """Return the torch device for `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        InvalidSettingError: there is no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidSettingError(
            f"device must be auto, cpu, cuda or cuda:N, got {name!r}"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise InvalidSettingError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidSettingError(
            f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device; "
            "set device to auto or cpu, or install a torch with CUDA and a driver that fits it"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidSettingError(
            f"device {name!r} was asked for, but torch sees {torch.cuda.device_count()} GPUs, "
            "which are counted from 0"
        )
    return device
