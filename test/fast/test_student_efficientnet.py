"""`efficientnet-lite0`: its depth has the image's resolution, and a pixel is on one surface."""

from __future__ import annotations

import numpy as np
import torch

from helpers.students import BINS
from tiekd_ros.method.losses import LossSettings, make_objective
from tiekd_ros.method.samples import AugmentSettings, Sample
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.efficientnet import EfficientNetStudent, upsample

SHARES = 5 * 16
SUMMARY = torch.zeros(1, 24 + 40 + 112 + 192)


def with_peaks(*peaks_m: float) -> EfficientNetStudent:
    """Return a network whose every DPM has equal peaks at these depths, whatever it gets."""
    network = EfficientNetStudent(BINS).eval()
    centres = BINS.centres()
    density = sum(torch.exp(-0.5 * ((centres - peak) / 0.1) ** 2) for peak in peaks_m)
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.copy_((density + 1e-9).log())
    return network


def test_pixels_are_convex_combinations_of_the_cells_around_them():
    torch.manual_seed(0)
    values = torch.rand(2, 1, 4, 5)
    fine = upsample(values, 3 * torch.randn(2, SHARES, 4, 5))
    assert fine.shape == (2, 1, 16, 20)
    assert values.min() <= fine.min() <= fine.max() <= values.max()
    own = torch.full((2, 5, 16, 4, 5), -20.0)
    own[:, 0] = 20.0
    nearest = upsample(values, own.flatten(1, 2))
    torch.testing.assert_close(nearest, values.repeat_interleave(4, 2).repeat_interleave(4, 3))
    left = torch.full((2, 5, 16, 4, 5), -20.0)
    left[:, 2] = 20.0
    moved = upsample(values, left.flatten(1, 2))[:, :, ::4, ::4]
    torch.testing.assert_close(moved[..., 1:], values[..., :-1])


@torch.no_grad()
def test_a_pixel_is_on_the_surface_of_the_cell_with_the_largest_share_and_as_sure():
    """Cells at 2, 2.1 and 6 m, the last unsure; a pixel's own cell counts a little more."""
    network = with_peaks(2.0)
    centres = BINS.centres()
    raw = torch.zeros(1, 64, 1, 3), torch.zeros(1, 32, 1, 3), SUMMARY
    widths = (0.1, 0.1, 0.5)
    network.head.bias.zero_()
    for cell, (peak, width) in enumerate(zip((2.0, 2.1, 6.0), widths, strict=True)):
        raw[0][0, cell, 0, cell] = 1.0
        network.head.weight[:, cell, 0, 0] = -0.5 * ((centres - peak) / width) ** 2
    network.shares.weight.zero_()
    bias = network.shares.bias.view(5, 16)
    bias.zero_()
    bias[0] = 0.5
    own = network.moments(raw)
    assert 2.0 < own.mean[..., 4:8].min() <= own.mean[..., 4:8].max() < 2.1
    torch.testing.assert_close(own.mean[..., 8:], torch.full((1, 1, 4, 4), 6.0), rtol=0.01, atol=0)
    assert own.std[..., 4:8].max() < 0.15 < 0.4 < own.std[..., 8:].min()
    assert 2.5 < network.output(raw).fine_depth[0, 0, 0, 5] < 3.5  # as it is trained
    bias[3] = 1.0  # the cell to the right
    right = network.moments(raw)
    torch.testing.assert_close(right.mean[..., 4:8], own.mean[..., 8:])
    torch.testing.assert_close(right.std[..., 4:8], own.std[..., 8:])


@torch.no_grad()
def test_a_pixel_that_sees_two_surfaces_is_on_one_of_them_and_unsure():
    raw = torch.zeros(1, 64, 2, 3), torch.zeros(1, 32, 2, 3), SUMMARY
    one, two = (with_peaks(*peaks).moments(raw) for peaks in ((2.0,), (2.0, 2.0, 6.0)))
    assert one.mean.shape == one.std.shape == (1, 1, 8, 12)
    torch.testing.assert_close(one.mean, torch.full_like(one.mean, 2.0), rtol=0.02, atol=0)
    torch.testing.assert_close(two.mean, one.mean, rtol=0.02, atol=0)
    assert two.std.min() > 5 * one.std.max()


def test_the_edge_of_an_object_is_learnt_finer_than_the_cells():
    """A square whose sides lie within cells: trained on it, depth changes where it does."""
    size, start, end = 64, 18, 47
    image = np.full((size, size, 3), 60, np.uint8)
    depth = np.full((size, size), 4.0, np.float32)
    image[start:end, start:end], depth[start:end, start:end] = 200, 1.5
    torch.manual_seed(0)
    network = build_network("efficientnet-lite0", BINS)
    settings = TrainSettings(iterations=60, batch_size=2, device="cpu", learning_rate=4e-3)
    trainer = Trainer(
        network,
        [Sample(image, depth)],
        settings,
        loss=LossSettings(),
        augmentation=AugmentSettings(flip=0.0, zoom=1.0),
        has_parent=False,
    )
    trainer.run(lambda progress: None)
    with torch.inference_mode():
        images, _ = trainer._tensors([Sample(image, depth)])
        found = network.predict_depth(images)[0, 0].numpy()
    wrong = np.abs(found - depth) > 0.25 * depth
    assert found.shape == depth.shape
    at_edge = np.zeros_like(wrong)
    at_edge[start - 2 : end + 2, start - 2 : end + 2] = True
    at_edge[start + 2 : end - 2, start + 2 : end - 2] = False
    assert wrong[at_edge].mean() < 0.25  # half of a cell wherever the cells are all there is
    assert wrong[~at_edge].mean() < 0.05


@torch.no_grad()
def test_the_edge_term_can_be_left_out():
    torch.manual_seed(0)
    network = build_network("efficientnet-lite0", BINS)
    raw, depth = network(torch.rand(1, 3, 64, 64)), torch.full((1, 1, 64, 64), 2.0)
    whole, without, dpm_alone = (
        make_objective(BINS, settings)(network.output(raw), depth)
        for settings in (
            LossSettings(),
            LossSettings(edge_weight=0.0),
            LossSettings(objective="tiekd-dpm"),
        )
    )
    assert whole.total > without.total
    assert whole.kl == without.kl == dpm_alone.kl == dpm_alone.total
