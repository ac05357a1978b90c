"""The fused losses against the same formulas in plain tensor code: values, gradients, memory."""

import math

import pytest
import torch
from straightforward_loss import straightforward_loss

from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.method.fused import compare_dpm
from tiekd_ros.method.losses import KullbackLeibler, LossSettings, make_objective
from tiekd_ros.method.paper.losses import PublishedDivergence
from tiekd_ros.method.paper.target import PublishedTarget
from tiekd_ros.method.target import Bands, DepthTarget
from tiekd_ros.student.architecture import StudentOutput
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import TargetWidth
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS

OBJECTIVES = ("paper", "paper-dpm", "paper-depth", "tiekd", "tiekd-dpm", "tiekd-depth")
ROBOT = DepthBins()
BY_LOG = DepthBins(spacing="log")
FEW = DepthBins(5, 1e-3, 80.0)  # so wide that the published window misses all centres in places
BINS = pytest.mark.parametrize("bins", [KITTI_BINS, NYU_BINS, ROBOT, BY_LOG, FEW], ids=str)


def maps(bins: DepthBins, size: tuple[int, int, int] = (2, 19, 23), dtype=torch.float32):
    """Return logits (B, C, h, w) and depth (B, 1, h, w) of all kinds: also unknown and outside."""
    B, h, w = size
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, bins.count, h, w, generator=rng, dtype=torch.float64)
    share = torch.rand(B, 1, h, w, generator=rng, dtype=torch.float64)
    depth = bins.min_depth_m + share * (bins.max_depth_m - bins.min_depth_m)
    depth[share < 0.1] = math.nan
    depth.view(-1)[:6] = torch.tensor([0.0, -1.0, 500.0, bins.max_depth_m, bins.min_depth_m, 0.05])
    return logits.to(dtype), depth.to(dtype)


def both_ways(bins: DepthBins, objective: str, logits, depth):
    """Return (parts, gradient) in plain tensor code and fused."""
    settings = LossSettings(objective=objective)
    plain, fused = straightforward_loss(bins, settings), make_objective(bins, settings)
    found = []
    for loss in (plain, lambda z, d: fused(StudentOutput(z, never), d)):
        z = logits.detach().requires_grad_()
        parts = loss(z, depth)
        found.append((parts, torch.autograd.grad(parts.total, z)[0]))
    return found


def never() -> torch.Tensor:
    raise AssertionError("the fused losses need no depth of the student but their own")


def check_both_ways(bins: DepthBins, objective: str, logits, depth, close: float) -> None:
    (wanted, gradient), (parts, fused) = both_ways(bins, objective, logits, depth)
    assert {part.dtype for part in parts} == {logits.dtype}
    assert torch.stack(parts).tolist() == pytest.approx(torch.stack(wanted).tolist(), close, 1e-6)
    assert (fused - gradient).abs().max() <= close * gradient.abs().max()


@BINS
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_are_those_of_plain_tensor_code(objective, bins):
    check_both_ways(bins, objective, *maps(bins), 1e-5)
    if objective in ("paper", "tiekd"):
        check_both_ways(bins, objective, *maps(bins, dtype=torch.float64), 1e-8)


@pytest.mark.parametrize("objective", ["paper", "tiekd"])
def test_neither_many_chunks_nor_large_logits_do_harm(objective):
    check_both_ways(FEW, objective, *maps(FEW, (2, 130, 704), torch.float64), 1e-8)  # and the crop
    logits, depth = maps(KITTI_BINS, dtype=torch.float64)
    logits = 1e4 + 200 * logits
    logits[:, ::3] = -1e4
    check_both_ways(KITTI_BINS, objective, logits, depth, 1e-8)


@pytest.mark.parametrize("objective", ["paper", "tiekd"])
def test_the_order_in_memory_does_not_matter(objective):
    logits, depth = maps(KITTI_BINS)
    _, (wanted, gradient) = both_ways(KITTI_BINS, objective, logits, depth)
    for other in (
        logits.contiguous(memory_format=torch.channels_last),
        torch.nn.functional.pad(logits, (1, 2, 3, 4))[:, :, 3:-4, 1:-2],
        logits.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0),
    ):
        _, (parts, fused) = both_ways(KITTI_BINS, objective, other, depth)
        assert parts.total.item() == pytest.approx(wanted.total.item(), rel=1e-6)
        assert (fused - gradient).abs().max() <= 1e-6 * gradient.abs().max()


@pytest.mark.parametrize("make", [
    lambda: PublishedDivergence(PublishedTarget(DepthBins(9, 1e-3, 10.0), 0.3)),
    lambda: KullbackLeibler(DepthTarget(DepthBins(9, 1e-3, 10.0), TargetWidth(0.4, 0.05))),
])  # fmt: skip
def test_gradients_are_those_of_finite_differences_and_cannot_be_differentiated(make):
    divergence = make()
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(1, 9, 3, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    depth = 10 * torch.rand(1, 1, 3, 4, generator=rng, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: tuple(compare_dpm(z, depth, divergence)), logits)
    assert torch.autograd.gradcheck(lambda z: compare_dpm(z, depth, divergence).divergence, logits)
    assert torch.autograd.gradcheck(lambda z: compare_dpm(z, depth, divergence, 1)[1], logits)
    value = compare_dpm(logits, depth, divergence).divergence
    (gradient,) = torch.autograd.grad((value**2).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("objective", ["paper", "tiekd"])
def test_half_precision_costs_nothing_but_the_precision_of_the_logits(objective):
    logits, depth = maps(KITTI_BINS)
    half = logits.bfloat16().contiguous(memory_format=torch.channels_last)
    _, (wanted, gradient) = both_ways(KITTI_BINS, objective, half.float(), depth)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (parts, fused) = both_ways(KITTI_BINS, objective, half, depth)
    assert fused.dtype == torch.bfloat16
    assert parts.total.item() == pytest.approx(wanted.total.item(), rel=1e-5)
    assert (fused.float() - gradient).abs().max() <= 2**-8 * gradient.abs().max()


def test_a_bin_that_the_student_rules_out_counts_nothing_where_the_target_does_too():
    logits, depth = maps(NYU_BINS, dtype=torch.float64)
    depth = torch.full_like(depth, 2.0)
    nearest = int((NYU_BINS.centres() - 2.0).abs().argmin())
    far = (torch.arange(NYU_BINS.count) - nearest).abs() > 15
    floored, ruled_out = logits.clone(), logits.clone()
    floored[:, far], ruled_out[:, far] = -800.0, -math.inf  # p is 0 either way
    for make in (
        lambda: KullbackLeibler(DepthTarget(NYU_BINS, TargetWidth())),
        lambda: PublishedDivergence(PublishedTarget(NYU_BINS)),
    ):
        wanted, found = (compare_dpm(z, depth, AllBins(make())) for z in (floored, ruled_out))
        assert torch.isfinite(wanted.divergence).all()
        torch.testing.assert_close(found, wanted)


class AllBins:
    """A divergence whose bands are all bins: also those far away, with no mass."""

    def __init__(self, divergence) -> None:
        self.bins, self.terms, self.slopes = divergence.bins, divergence.terms, divergence.slopes
        self._divergence = divergence

    def bands(self, depth: torch.Tensor) -> Bands:
        bands = self._divergence.bands(depth)
        whole = torch.full_like(bands.bins, self.bins.count)
        return Bands(torch.zeros_like(bands.first), whole, bands.numbers)

    def target(self, numbers: torch.Tensor, first: torch.Tensor, count: int) -> torch.Tensor:
        q = self._divergence.target(numbers, first, count)
        return q.masked_fill(q < 1e-12, 0)  # the tails' last digits


def test_the_term_of_a_bin_that_is_ruled_out_is_that_of_the_limit():
    divergence = KullbackLeibler(DepthTarget(NYU_BINS, TargetWidth()))
    target, ruled_out = torch.tensor([[0.0, 0.5]]), torch.full((1, 2), -math.inf)
    assert divergence.terms(target, ruled_out).tolist() == [[0.0, math.inf]]
    assert divergence.slopes(target, ruled_out).tolist() == [[0.0, -0.5]]


def test_without_an_image_only_the_published_loss_is_refused():
    logits, depth = torch.empty(0, FEW.count, 19, 23), torch.empty(0, 1, 19, 23)
    for objective in ("tiekd", "tiekd-dpm", "tiekd-depth"):
        (wanted, _), (parts, gradient) = both_ways(FEW, objective, logits, depth)
        assert torch.stack(parts).tolist() == torch.stack(wanted).tolist()
        assert gradient.shape == logits.shape
    for objective in ("paper", "paper-dpm", "paper-depth"):
        loss = make_objective(FEW, LossSettings(objective=objective))
        for B, h in ((0, 4), (2, 0)):
            output = StudentOutput(torch.empty(B, FEW.count, h, 5), never)
            with pytest.raises(BadDepthError, match=rf"no pixel.*\({B}, 5, {h}, 5\)"):
                loss(output, torch.empty(B, 1, h, 5))


@pytest.mark.parametrize("objective", ["paper", "tiekd"])
def test_autograd_keeps_no_map_of_all_bins_but_the_logits(objective):
    logits, depth = maps(KITTI_BINS)
    logits = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    kept: list[torch.Tensor] = []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved)
        return saved

    objective_ = make_objective(KITTI_BINS, LossSettings(objective=objective))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        total = objective_(StudentOutput(logits, never), depth).total
    sizes = sorted(saved.numel() for saved in kept)
    assert sizes[-1] == logits.numel()
    assert [saved for saved in kept if saved.numel() > depth.numel() * 6] == [logits]
    total.backward()
    assert logits.grad.is_contiguous(memory_format=torch.channels_last)


@BINS
def test_bands_hold_the_mass(bins):
    depth = torch.linspace(bins.min_depth_m, bins.max_depth_m, 3000, dtype=torch.float64)
    own, wide, published = (
        DepthTarget(bins, TargetWidth(0.04, 0.05)),
        DepthTarget(bins, TargetWidth(2.0, 0.0)),
        PublishedTarget(bins),
    )
    for target, shares, least in (
        (own, own.masses, 1e-8),
        (wide, wide.masses, 1e-8),
        (published, published.shares, 0),
    ):
        bands = target.bands(depth)
        whole = shares(bands.numbers, torch.zeros_like(bands.first), bins.count)  # (3000, C)
        index = torch.arange(bins.count)
        first, end = bands.first[:, None], (bands.first + bands.bins)[:, None]
        assert (first >= 0).all()
        assert (end <= bins.count).all()
        inside = (index >= first) & (index < end)
        assert whole.masked_fill(inside, 0).sum(1).max() <= least
    kitti = PublishedTarget(KITTI_BINS)
    assert kitti.bands(torch.linspace(0, 80, 1000)).bins.max() <= 30
    assert kitti.bands(torch.tensor([85.0])).bins.tolist() == [257]
