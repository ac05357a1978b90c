"""Depth bins: the axis of a depth probability map (DPM).

Shapes: C bins, so C + 1 edges and C centres, in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tiekd_ros.errors import InvalidSettingError
from tiekd_ros.settings import Settings, setting


@dataclass(frozen=True)
class DepthBins(Settings):
    """Uniform bins between the ends of a depth range, as in TIE-KD (arXiv 2402.14340)."""

    count: int = setting(257, "number of depth bins", minimum=2, maximum=4096)
    min_depth_m: float = setting(
        0.1, "near end of the depth range", unit="m", minimum=1e-3, maximum=100.0
    )
    max_depth_m: float = setting(
        10.0, "far end of the depth range", unit="m", minimum=0.1, maximum=1000.0
    )

    def check(self) -> None:
        """Refuse an empty range."""
        if self.max_depth_m <= self.min_depth_m:
            raise InvalidSettingError(
                f"max_depth_m must be greater than min_depth_m ({self.min_depth_m:g} m), "
                f"got {self.max_depth_m:g} m"
            )

    @property
    def width_m(self) -> float:
        """Width of one bin in metres."""
        return (self.max_depth_m - self.min_depth_m) / self.count

    def edges(self) -> Tensor:
        """Return the C + 1 bin edges in metres, float32."""
        return torch.linspace(self.min_depth_m, self.max_depth_m, self.count + 1)

    def centres(self) -> Tensor:
        """Return the C bin centres in metres, float32."""
        edges = self.edges()
        return 0.5 * (edges[:-1] + edges[1:])
