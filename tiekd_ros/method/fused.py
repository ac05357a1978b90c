"""Divergence and expectation of a student's DPM, straight from its logits.

The straightforward way makes one map (B, C, h, w) after the other: the DPM, the target, their
ratio, its logarithm. Each goes to memory and back, and autograd keeps most of them. Here some
hundred pixels at a time go through all steps, so that what is made of them stays in the
processor's cache, and the target is made and compared only in the bins in which it has mass.
Kept for the backward pass are the logits and a few numbers a pixel, from which it makes the
rest again. The only other map (B, C, h, w) is the gradient.

Shapes: B batch, C bins, h and w the map, N = h * w its pixels; n pixels of a chunk and K bins
of its bands (see `bands`). With logits z, p = softmax(z), bin centres c_i, the expectation
d = sum_i p_i c_i, the divergence D = sum_i f(q_i, ln p_i), its slopes s_i = df / d ln p_i, and
the loss's gradients g_D and g_d:

    dL / dz_j = g_D s_j + p_j (g_d (c_j - d) - g_D sum_i s_i)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tiekd_ros.method.target import BandedDivergence, Bands, windows

# Values of a chunk of a map (B, C, h, w): three such chunks fit into two cores' caches.
_CPU_CHUNK = 2**18
_GPU_CHUNK = 2**23  # keeps a GPU busy


class DpmComparison(NamedTuple):
    """What a loss needs of a student's DPM and a target, each (B, 1, h', w)."""

    divergence: Tensor
    expectation: Tensor
    """Of the student's DPM, metres."""


def compare_dpm(
    logits: Tensor, depth: Tensor, divergence: BandedDivergence, first_row: int = 0
) -> DpmComparison:
    """Return the divergence of a student's DPM from a target, and the DPM's expectation.

    Gradients flow to the logits, once: the backward pass cannot be differentiated again.
    Half-precision logits are taken to float32; the result is float32 or float64.

    Args:
        logits: (B, C, h, w), in any memory format.
        depth: the teacher's, (B, 1, h, w), metres.
        divergence: makes the target of a depth and compares with it.
        first_row: rows above it are left out: h' = h - first_row.
    """
    with torch.autocast(logits.device.type, enabled=False):
        kept = depth[:, 0, first_row:].to(torch.promote_types(logits.dtype, torch.float32))
        bands = divergence.bands(kept.flatten())
        maps = _CompareDpm.apply(logits, divergence, bands, first_row)  # type: ignore[no-untyped-call]
        return DpmComparison(*(values.view(kept.shape).unsqueeze(1) for values in maps))


class _Chunk(NamedTuple):
    """Some pixels of one image that are computed together."""

    image: int
    pixels: slice  # of the image's
    all_pixels: slice  # the same ones among those of all images
    bins: int  # K, of their widest band


class _CompareDpm(torch.autograd.Function):
    """Logits (B, C, h, w) -> divergence and expectation, each (B * N,)."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, divergence: BandedDivergence, bands: Bands, first_row: int
    ) -> tuple[Tensor, Tensor]:
        centres = divergence.bins.centres().to(bands.numbers)
        weights = torch.stack((torch.ones_like(centres), centres), dim=1)  # (C, 2)
        chunks = _plan(bands.bins, logits)
        peak, total, mean, value = bands.numbers.new_empty((4, len(bands.first)))
        buffer = _buffer(chunks, centres)
        rows = _rows(logits, first_row)
        for chunk in chunks:
            at = chunk.all_pixels
            z = rows[chunk.image][chunk.pixels]  # (n, C)
            peak[at] = z.amax(dim=1)
            shifted = torch.sub(z, peak[at, None], out=buffer[: len(z)])
            first = bands.first[at].clamp_max(len(centres) - chunk.bins)
            log_student = _band(shifted, first, chunk.bins)  # (n, K)
            total[at], moment = (shifted.exp_() @ weights).unbind(dim=1)
            torch.div(moment, total[at], out=mean[at])
            log_student -= total[at, None].log()
            target = divergence.target(bands.numbers[:, at], first, chunk.bins)
            torch.sum(divergence.terms(target, log_student), dim=1, out=value[at])
        ctx.save_for_backward(logits, bands.first, bands.numbers, peak, total, mean)
        ctx.divergence, ctx.chunks, ctx.first_row = divergence, chunks, first_row
        ctx.set_materialize_grads(False)
        return value, mean

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_value: Tensor | None, g_mean: Tensor | None
    ) -> tuple[Tensor, None, None, None]:
        logits, firsts, numbers, peak, total, mean = ctx.saved_tensors
        divergence: BandedDivergence = ctx.divergence
        gradient = _empty_like(logits)
        gradient[:, :, : ctx.first_row] = 0
        rows, gradient_rows = _rows(logits, ctx.first_row), _rows(gradient, ctx.first_row)
        centres = divergence.bins.centres().to(numbers)
        buffer, factors = _buffer(ctx.chunks, centres), _buffer(ctx.chunks, centres)
        for chunk in ctx.chunks:
            at = chunk.all_pixels
            z, wanted = (r[chunk.image][chunk.pixels] for r in (rows, gradient_rows))  # (n, C)
            in_place = wanted.is_contiguous() and wanted.dtype == buffer.dtype
            result = wanted if in_place else buffer[: len(z)]
            torch.sub(z, peak[at, None], out=result)
            factor = torch.sub(centres, mean[at, None], out=factors[: len(z)])
            factor *= 0 if g_mean is None else (g_mean[at] / total[at])[:, None]
            if g_value is None:
                result.exp_().mul_(factor)
            else:
                first = firsts[at].clamp_max(len(centres) - chunk.bins)
                log_student = _band(result, first, chunk.bins).sub_(total[at, None].log())
                target = divergence.target(numbers[:, at], first, chunk.bins)
                slopes = divergence.slopes(target, log_student).mul_(g_value[at, None])  # (n, K)
                factor -= (slopes.sum(dim=1) / total[at])[:, None]
                result.exp_().mul_(factor)
                bins = first[:, None] + torch.arange(chunk.bins, device=first.device)
                result.scatter_add_(1, bins, slopes)
            if not in_place:
                wanted.copy_(result)
        return gradient, None, None, None


def _plan(bins: Tensor, logits: Tensor) -> list[_Chunk]:
    """Return the chunks of the pixels of all images whose bands have so many bins, (B * N,)."""
    if not len(bins):  # no image, or no row of one
        return []
    B, C = logits.shape[:2]
    N = len(bins) // B
    size = max(1, (_CPU_CHUNK if bins.device.type == "cpu" else _GPU_CHUNK) // C)
    filled = functional.pad(bins.view(B, N), (0, -N % size))
    widest = filled.view(B, -1, size).amax(dim=2).tolist()  # of all at once: a GPU is waited for
    starts = range(0, N, size)
    return [
        _Chunk(image, slice(start, stop), slice(image * N + start, image * N + stop), K)
        for image in range(B)
        for start, K in zip(starts, widest[image], strict=True)
        for stop in (min(start + size, N),)
    ]


def _buffer(chunks: list[_Chunk], like: Tensor) -> Tensor:
    """Return room for the largest chunk, (n, C)."""
    largest = max((c.pixels.stop - c.pixels.start for c in chunks), default=0)
    return like.new_empty((largest, len(like)))


def _rows(maps: Tensor, first_row: int) -> list[Tensor]:
    """Return maps (B, C, h, w) as one (N, C) an image, without the rows above the first."""
    return [image[:, first_row:].flatten(1).t() for image in maps]


def _empty_like(maps: Tensor) -> Tensor:
    """Return room for maps in one of the two formats that `_rows` does not have to copy."""
    channels_last = maps.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty_like(maps, memory_format=memory_format)


def _band(values: Tensor, first: Tensor, bins: int) -> Tensor:
    """Return the values (n, C) in the bins from the first (n,) on, (n, K)."""
    n, C = values.shape
    return windows(values.view(-1), first + C * torch.arange(n, device=first.device), bins)
