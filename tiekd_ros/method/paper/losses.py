"""The published distillation losses: L_DPM, L_DEPTH and their sum, TIE-KD.

Shapes: B batch, C bins, h and w the map. p = softmax(logits) is the student's DPM, q the
teacher's (`PublishedTarget`), d_S = sum_i p_i c_i the student's depth, d_T the teacher's.

    L_DPM   = mean over pixels of sum_i q_i ln(q_i / (p_i + eps) + eps),  eps = 1e-7
    L_DEPTH = 1 - SSIM(d_S, d_T)
    TIE-KD  = 10 (w L_DPM + (1 - w) L_DEPTH),  w = 0.1

There is no valid mask. A teacher pixel that is unknown (NaN here) is a 0 in the published
depth PNGs, and is taken for the depth 0 m, as there.

The response-based losses compare student and teacher depth, (B, 1, h, w), metres. None of them
crops maps that are 704 wide, and none is scaled by 10. A teacher pixel that is unknown is a 0:
SSIM and MSE take it for the depth 0 m, SI leaves it out.

SSIM is that of Wang et al. 2004 with an 11x11 Gaussian window (sigma 1.5), but as the published
code has it: depth goes in as metres although the constants are those of a dynamic range of 1, the
borders are padded with zeros, and the covariance is taken absolute like the variances, so structure
that is exactly reversed counts as similar.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.backends import cudnn
from torch.nn import functional

from tiekd_ros.core.errors import BadDepthError, InvalidSettingError
from tiekd_ros.method.fused import DpmComparison, compare_dpm
from tiekd_ros.method.metrics import batch_count, batch_sum
from tiekd_ros.method.paper.target import PUBLISHED_SIGMA_M, PublishedTarget, unknown_as_zero
from tiekd_ros.student.bins import DepthBins

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


SSIM_WEIGHT = 1.5  # of SSIM alone and in its sums, in every published config
SI_WEIGHT = 1.0  # of SI alone; the published NYU configs of Res-KD have 1.5
_SI_MEAN_SHARE = 0.15
_SI_EPS_M = 0.001


def ssim_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) over all pixels."""
    student, teacher = _pair(student, teacher)
    return weight * (1 - published_ssim(student, teacher))


def mse_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error over all pixels, square metres.

    It has no weight: the published one ignores the weight of its config.
    """
    student, teacher = _pair(student, teacher)
    return ((student - teacher) ** 2).mean()


def si_loss(student: Tensor, teacher: Tensor, weight: float = SI_WEIGHT) -> Tensor:
    """Return the scale-invariant loss over the pixels with teacher depth > 0.

    weight * sqrt(Var(g) + 0.15 mean(g)^2), g = ln(student + 1 mm) - ln(teacher + 1 mm), with
    the unbiased variance over all such pixels of the batch together. Where fewer than two
    pixels count, or all agree exactly, the published loss or its gradient is NaN; here it is 0.
    """
    student, teacher = _pair(student, teacher)
    known = teacher > 0
    g = torch.log(student[known] + _SI_EPS_M) - torch.log(teacher[known] + _SI_EPS_M)  # (n,)
    count = batch_count(known)  # of all processes that share the batch, as the sums below
    if count < 2:
        return 0 * student.sum()
    mean = batch_sum(g.sum()) / count
    square = batch_sum(((g - mean) ** 2).sum()) / (count - 1) + _SI_MEAN_SHARE * mean**2
    positive = square > 0
    root = torch.where(positive, square, torch.ones_like(square)).sqrt()
    return weight * torch.where(positive, root, torch.zeros_like(root))


def ssim_si_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) + SI."""
    return ssim_loss(student, teacher, weight) + si_loss(student, teacher)


def ssim_mse_loss(student: Tensor, teacher: Tensor, weight: float = SSIM_WEIGHT) -> Tensor:
    """Return weight * (1 - SSIM) + MSE."""
    return ssim_loss(student, teacher, weight) + mse_loss(student, teacher)


RESPONSE_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ssim": ssim_loss,
    "mse": mse_loss,
    "si": si_loss,
    "ssim+si": ssim_si_loss,
    "ssim+mse": ssim_mse_loss,
}
"""Loss by name: (student depth, teacher depth) -> scalar, with the weights for KITTI."""


def _pair(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    if student.shape != teacher.shape:
        raise BadDepthError(
            f"student depth {tuple(student.shape)} and teacher depth {tuple(teacher.shape)} must "
            "have one shape: bring the teacher's map to the student's output size"
        )
    return student, unknown_as_zero(teacher)


_DPM_SIGMA_M = {"kitti": 0.8, "nyu": 0.15}
_DPM_SIGMA_OF_M = {("kitti", "resnet50"): 0.5}  # of one architecture
_SI_WEIGHT_NYU = 1.5


def loss_numbers(
    dataset: str, objective: str, architecture: str, *, baseline: bool = False
) -> dict[str, float]:
    """Return the published numbers of an objective, by the name of their setting in LossSettings.

    The sigma of a published config reaches the loss only where L_DPM is trained alone (in TIE-KD
    0.5 m counts, whatever the config says), and the weight of SI only where SI is.

    Args:
        dataset: kitti or nyu.
        objective: its name.
        architecture: the student's.
        baseline: the student learns measured depth, not a teacher's.

    Returns:
        What differs from the defaults, empty where nothing does.
    """
    if objective == "paper-dpm":
        own = _DPM_SIGMA_OF_M.get((dataset, architecture), _DPM_SIGMA_M[dataset])
        return {"paper_sigma_m": own}
    if objective == "si":
        distilled = dataset == "nyu" and not baseline
        return {"si_weight": _SI_WEIGHT_NYU if distilled else SI_WEIGHT}
    return {}


Crop = Literal["slice", "pad", "none"]
"""What happens to maps that are 704 wide: see `crop_upper_rows`."""

CROP_WIDTH = 704
CROP_TOP = 110
LOSS_WEIGHT = 0.1
_EPS = 1e-7
_SCALE = 10.0


class PublishedLossParts(NamedTuple):
    """The loss and its parts, scalars; total = 10 (w l_dpm + (1 - w) l_depth)."""

    total: Tensor
    l_dpm: Tensor
    l_depth: Tensor


def crop_upper_rows(maps: Tensor, crop: Crop = "slice") -> Tensor:
    """Drop the upper 110 rows of maps that are 704 wide; leave all others as they are.

    704 is the width of KITTI's training crop, where the LiDAR never sees the upper rows. The
    published code asks torchvision for `crop(top=110, height=h)`, whose answer depends on the
    version: up to 0.9 (the documented one) rows 110..h-1 remain, "slice"; from 0.10 on the map
    is filled up with 110 rows of zeros at the bottom, "pad", and a mean over a map of 352 rows
    shrinks to 242/352 of its value. "none" never crops.

    Args:
        maps: (B, C, h, w).
        crop: which variant.

    Raises:
        BadDepthError: a map 704 wide has no row below the crop.
    """
    top = _cropped_rows(maps, crop)
    kept = maps[:, :, top:, :]
    return functional.pad(kept, (0, 0, 0, top)) if crop == "pad" else kept


def _cropped_rows(maps: Tensor, crop: Crop) -> int:
    """Return how many upper rows are dropped of maps (B, C, h, w)."""
    if crop == "none" or maps.shape[3] != CROP_WIDTH:
        return 0
    if maps.shape[2] <= CROP_TOP:
        raise BadDepthError(
            f"a map {CROP_WIDTH} wide loses its upper {CROP_TOP} rows in the published loss, but "
            f"this one has only {maps.shape[2]}: use crop='none' or another width"
        )
    return CROP_TOP


class PublishedDivergence:
    """The divergence of L_DPM: about KL(teacher || student), see `target.BandedDivergence`.

    A bin counts nothing, and gets no gradient, where the student's probability is exactly 0:
    so the published code forgives a student that rules the teacher's bin out completely.
    """

    def __init__(self, target: PublishedTarget) -> None:
        self.bins = target.bins
        self.bands = target.bands
        self.target = target.shares

    def terms(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return q ln(q / (p + eps) + eps) where p is not 0."""
        student = log_student.exp()
        terms = (target / (student + _EPS)).add_(_EPS).log_().mul_(target)
        return terms.mul_(student.sign_())  # the sign is 0 or 1

    def slopes(self, target: Tensor, log_student: Tensor) -> Tensor:
        """Return the derivatives of the terms with respect to ln p.

        They are -q r / (r + eps) p / (p + eps) with r = q / (p + eps), hence 0 where p is.
        """
        student = log_student.exp()
        more = student + _EPS
        share = target / torch.add(target, more, alpha=_EPS)  # r / (r + eps)
        return share.mul_(target).mul_(student.div_(more)).neg_()


class PublishedDpmLoss:
    """L_DPM: the mean of the divergence map."""

    def __init__(
        self, bins: DepthBins, sigma_m: float = PUBLISHED_SIGMA_M, crop: Crop = "slice"
    ) -> None:
        self.bins = bins
        self.target = PublishedTarget(bins, sigma_m)
        self.crop = _check_crop(crop)

    def __call__(self, logits: Tensor, depth: Tensor) -> Tensor:
        """Compare logits (B, C, h, w) with teacher depth (B, 1, h, w); a scalar."""
        return self.compare(logits, depth).divergence.mean()

    def compare(self, logits: Tensor, depth: Tensor) -> DpmComparison:
        """Return divergence and student depth of the pixels that the crop leaves, (B, 1, h', w)."""
        _check(logits, depth, self.bins)
        top = _cropped_rows(logits, self.crop)
        maps = compare_dpm(logits, unknown_as_zero(depth), PublishedDivergence(self.target), top)
        if self.crop == "pad":
            maps = DpmComparison(*(functional.pad(values, (0, 0, 0, top)) for values in maps))
        return maps


class PublishedLoss:
    """TIE-KD as published.

    Args:
        bins: the student's bins.
        loss_weight: w, the share of L_DPM; one published config has 1.5, which turns the sign
            of the SSIM term.
        sigma_m: width of the target; the published code always uses 0.5.
        crop: what happens to maps that are 704 wide.

    Raises:
        InvalidSettingError: sigma_m is not positive, or there is no such crop.
    """

    def __init__(
        self,
        bins: DepthBins,
        loss_weight: float = LOSS_WEIGHT,
        sigma_m: float = PUBLISHED_SIGMA_M,
        crop: Crop = "slice",
    ) -> None:
        self.bins = bins
        self.loss_weight = loss_weight
        self.dpm_loss = PublishedDpmLoss(bins, sigma_m, crop)

    def __call__(self, logits: Tensor, depth: Tensor) -> PublishedLossParts:
        """Compare logits (B, C, h, w) with teacher depth (B, 1, h, w) in metres.

        Raises:
            BadDepthError: the shapes do not fit each other or the bins, or depth is not in
                floating-point metres.
        """
        maps = self.dpm_loss.compare(logits, depth)
        l_dpm = maps.divergence.mean()
        teacher = crop_upper_rows(unknown_as_zero(depth), self.dpm_loss.crop)
        l_depth = 1 - published_ssim(maps.expectation, teacher)
        total = _SCALE * (self.loss_weight * l_dpm + (1 - self.loss_weight) * l_depth)
        return PublishedLossParts(total, l_dpm, l_depth)


def _check_crop(crop: Crop) -> Crop:
    if crop not in get_args(Crop):
        names = ", ".join(repr(name) for name in get_args(Crop))
        raise InvalidSettingError(f"crop must be one of {names}, got {crop!r}")
    return crop


def _check(logits: Tensor, depth: Tensor, bins: DepthBins) -> None:
    if logits.ndim != 4 or logits.shape[1] != bins.count:
        raise BadDepthError(
            f"expected logits (B, {bins.count}, h, w), one channel per bin, "
            f"got {tuple(logits.shape)}"
        )
    if logits.numel() == 0:
        raise BadDepthError(f"there is no pixel to compare in logits {tuple(logits.shape)}")
    if not depth.is_floating_point():
        raise BadDepthError(
            f"teacher depth must be floating-point metres, got {depth.dtype}: convert it, and "
            "divide what a PNG holds by the PNG's scale"
        )
    wanted = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(depth.shape) != wanted:
        raise BadDepthError(
            f"expected teacher depth {wanted} for logits {tuple(logits.shape)}, got "
            f"{tuple(depth.shape)}: bring the teacher's map to the student's output size"
        )
