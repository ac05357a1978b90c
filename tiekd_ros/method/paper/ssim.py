"""The published structural similarity of two depth maps.

Wang et al. 2004 with an 11x11 Gaussian window (sigma 1.5), but as the published code has it:
depth goes in as metres although the constants are those of a dynamic range of 1, the borders
are padded with zeros, and the covariance is taken absolute like the variances, so structure
that is exactly reversed counts as similar.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.nn import functional

from tiekd_ros.core.errors import BadDepthError

WINDOW_SIZE = 11
WINDOW_SIGMA = 1.5
_C1 = 0.01**2
_C2 = 0.03**2


def gaussian_window(
    dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Tensor:
    """Return the filter, (1, 1, 11, 11): outer product of a 1-D Gaussian whose sum is 1.

    It is computed in float32 and then converted, like the published one.
    """
    offsets = torch.arange(WINDOW_SIZE, dtype=torch.float64) - WINDOW_SIZE // 2
    line = torch.exp(-(offsets**2) / (2 * WINDOW_SIGMA**2)).float()
    line = line / line.sum()
    return torch.outer(line, line)[None, None].to(device=device, dtype=dtype)


def published_ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean similarity of two maps of any size, as a scalar.

    With F the filter over zero-padded maps, m = F(a), n = F(b), u = |F(aa) - mm|,
    v = |F(bb) - nn| and w = |F(ab) - mn|, a pixel's similarity is

        (2 m n + C1) (2 w + C2) / ((m^2 + n^2 + C1) (u + v + C2)),  C1 = 0.01^2, C2 = 0.03^2

    Args:
        a: first map, metres, (B, 1, h, w).
        b: second map, the same shape.

    Raises:
        BadDepthError: the shapes differ or are not (B, 1, h, w).
    """
    if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 1 or a.numel() == 0:
        raise BadDepthError(
            f"SSIM compares two maps of one shape (B, 1, h, w), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    a, b = single_or_double(a), single_or_double(b)
    return _mean_similarity(a, b.to(a.dtype))


def single_or_double(x: Tensor) -> Tensor:
    """Return half-precision values as float32, all others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _mean_similarity(a: Tensor, b: Tensor) -> Tensor:
    mean_a, mean_b = _blur(a), _blur(b)
    square_a, square_b, product = mean_a**2, mean_b**2, mean_a * mean_b
    variance_a = (_blur(a * a) - square_a).abs()
    variance_b = (_blur(b * b) - square_b).abs()
    covariance = (_blur(a * b) - product).abs()
    similarity = ((2 * product + _C1) * (2 * covariance + _C2)) / (
        (square_a + square_b + _C1) * (variance_a + variance_b + _C2)
    )
    return similarity.mean()


def _blur(x: Tensor) -> Tensor:
    blurred: Tensor = _Blur.apply(x)  # type: ignore[no-untyped-call]
    return blurred


def without_tf32(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within the block, convolutions on a GPU take all 24 bits of a float32, not TF32's 11.

    TF32 is torch's default there. All other flags of cuDNN stay as they are.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        benchmark_limit=cudnn.benchmark_limit,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    )


class _Blur(torch.autograd.Function):
    """The filter. Its window is symmetric, so that it is also its own gradient.

    Autograd's backward of a convolution is ten times slower than the convolution, with maps of
    one channel on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Squares of metres need float32 and more: autocast would take half precision.
        with torch.autocast(x.device.type, enabled=False), without_tf32(x.device):
            window = gaussian_window(x.dtype, x.device)
            return functional.conv2d(x, window, padding=WINDOW_SIZE // 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _blur(gradient)
