"""The published SSIM on a CUDA device: the numbers of a CPU, whatever TF32 would make of them."""

import pytest
import torch

from tiekd_ros.method.paper.losses import published_ssim

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_small_structure_far_away_keeps_its_digits(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    rng = torch.Generator().manual_seed(0)
    a = 70 + 0.3 * torch.randn(2, 1, 88, 120, generator=rng, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, generator=rng, dtype=torch.float64)).float()
    a = a.float().cuda().requires_grad_()
    exact = a.detach().cpu().double().requires_grad_()
    found, expected = published_ssim(a, b.cuda()), published_ssim(exact, b.double())
    found.backward()
    expected.backward()
    # float32 has 24 bits for squares of 5000 of which 0.1 matters; TF32's 11 leave nothing of it.
    assert found.item() == pytest.approx(expected.item(), abs=0.01)
    difference = (a.grad.cpu().double() - exact.grad).norm()
    assert difference <= 0.05 * exact.grad.norm()
