"""The published students: names, shapes and numbers are those of the published code."""

import copy

import numpy as np
import pytest
import torch

from helpers.official import (
    REFERENCE,
    hash_state,
    hash_values,
    needs_reference,
    published_shapes,
    shapes_of,
)
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import ARCHITECTURES, build_network
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS
from tiekd_ros.student.runtimes.base import fuse_batch_norms

KITTI_TOLERANCE_M, NYU_TOLERANCE_M = 2e-3, 3e-4

FIXTURES = {
    "mobilenetv2": ("mobilenetv2", KITTI_BINS, KITTI_TOLERANCE_M),
    "mobilenetv2_nyu49": ("mobilenetv2", NYU_BINS, NYU_TOLERANCE_M),
    "mobilenetv2_reskd": ("mobilenetv2-regression", KITTI_BINS, KITTI_TOLERANCE_M),
    "resnet18": ("resnet18", KITTI_BINS, KITTI_TOLERANCE_M),
    "resnet18_reskd": ("resnet18-regression", KITTI_BINS, KITTI_TOLERANCE_M),
    "resnet50": ("resnet50", KITTI_BINS, KITTI_TOLERANCE_M),
}
SMALL_BINS = DepthBins(count=9, min_depth_m=1e-3, max_depth_m=80.0)


def on_meta(architecture: str, bins: DepthBins = KITTI_BINS) -> StudentNetwork:
    """Return a network without memory for its weights: enough to ask for names and shapes."""
    with torch.device("meta"):
        return build_network(architecture, bins)


def hashed(architecture: str, bins: DepthBins, out_gain: float = 1.0) -> StudentNetwork:
    network = build_network(architecture, bins)
    network.load_state_dict(hash_state(shapes_of(network), out_gain))
    return network.eval()


@needs_reference
@pytest.mark.parametrize("encoder", ["mobilenetv2", "resnet18", "resnet50"])
def test_names_shapes_and_order_are_the_published_ones(encoder):
    published = published_shapes(encoder)
    assert list(shapes_of(on_meta(encoder)).items()) == list(published.items())
    nyu = {k: (49, *s[1:]) if ".conv_out.0." in k else s for k, s in published.items()}
    assert shapes_of(on_meta(encoder, NYU_BINS)) == nyu
    regression = {k: (256, *s[1:]) if ".conv_out.0." in k else s for k, s in published.items()}
    assert shapes_of(on_meta(f"{encoder}-regression")) == regression


def test_the_number_of_parameters_is_the_published_one():
    for architecture, bins, number in (
        ("mobilenetv2", KITTI_BINS, 17_647_618),
        ("mobilenetv2", NYU_BINS, 17_620_786),
        ("mobilenetv2-regression", KITTI_BINS, 17_647_489),
        ("resnet18", KITTI_BINS, 16_783_938),
        ("resnet18", NYU_BINS, 16_757_106),
        ("resnet50", KITTI_BINS, 78_394_178),
    ):
        assert sum(p.numel() for p in on_meta(architecture, bins).parameters()) == number


@needs_reference
@pytest.mark.parametrize("name", FIXTURES)
def test_every_number_is_that_of_the_published_code(name):
    architecture, bins, tolerance = FIXTURES[name]
    fixture = np.load(REFERENCE / f"student_{name}_hashweights.npz")
    np.testing.assert_array_equal(hash_values("input/shared/0", [4]), fixture["hash_check"])
    network = hashed(architecture, bins, float(fixture["out_gain"]))
    for case in ("s0", "s1"):
        if f"{case}_input_key" not in fixture:
            break
        last = case
        key, shape = str(fixture[f"{case}_input_key"]), fixture[f"{case}_input_shape"].tolist()
        x = torch.from_numpy(2 * hash_values(key, shape))
        check_case(network, x, case, fixture, tolerance)
    fused = fuse_batch_norms(network)
    with torch.inference_mode():
        depth = fused.predict_depth(x)
    np.testing.assert_allclose(depth, fixture[f"{last}_simple_test"], rtol=0, atol=tolerance)


@torch.inference_mode()
def check_case(network, x, case, fixture, tolerance):
    features = network.backbone(x)
    for index, feature in enumerate(features):
        assert list(feature.shape) == fixture[f"{case}_feat{index}_shape"].tolist()
        found = [feature.double().mean().item(), feature.double().std().item()]
        np.testing.assert_allclose(found, fixture[f"{case}_feat{index}_mean_std"], rtol=1e-4)
    raw = network(x)
    head = network.output(raw).depth
    np.testing.assert_allclose(head, fixture[f"{case}_head_depth"], rtol=0, atol=tolerance)
    if network.has_dpm:
        edges = fixture[f"{case}_bin_edges"]
        np.testing.assert_allclose(network.bins.edges(), edges, rtol=1e-6)
        y, x_ = fixture[f"{case}_dpm_sample_yx"]
        dpm = network.output(raw).logits.softmax(dim=1)[:, :, y, x_]
        np.testing.assert_allclose(dpm, fixture[f"{case}_dpm_samples"], rtol=1e-3, atol=1e-6)
    depth = network.predict_depth(x)
    assert depth.shape[2:] == x.shape[2:]
    np.testing.assert_allclose(depth, fixture[f"{case}_simple_test"], rtol=0, atol=tolerance)
    mirrored = network.predict_depth(x.flip(3)).flip(3)
    both = 0.5 * (depth + mirrored)
    np.testing.assert_allclose(both, fixture[f"{case}_flip_aug_test"], rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", ["mobilenetv2", "resnet18", "resnet18-regression"])
def test_any_input_size_is_rounded_up_by_the_head_and_given_back_by_the_wrapper(architecture):
    network = build_network(architecture, SMALL_BINS).eval()
    multiple = network.input_multiple
    assert multiple == (4 if architecture == "mobilenetv2" else 2)
    channels = SMALL_BINS.count if network.has_dpm else 1
    for size in ((33, 47), (64, 66), (50, 35)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            raw, depth = network(x), network.predict_depth(x)
        assert raw.shape[1:] == (channels, *(-(-side // multiple) * multiple for side in size))
        assert depth.shape == (1, 1, *size)


@pytest.mark.parametrize("architecture", ["mobilenetv2", "resnet18"])
def test_fused_batch_norms_change_nothing_but_rounding(architecture):
    plain = hashed(architecture, SMALL_BINS)
    fused = fuse_batch_norms(copy.deepcopy(plain))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    x = torch.from_numpy(2 * hash_values("fusing", (1, 3, 64, 64)))
    with torch.inference_mode():
        before, after = plain.predict_depth(x), fused.predict_depth(x)
    assert before.std() > 1e-2  # an answer that says something
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet18", "resnet18-regression"])
def test_depth_for_training_is_depth_at_inference_and_has_gradients(architecture):
    network = hashed(architecture, SMALL_BINS)
    raw = network(torch.randn(1, 3, 32, 64))
    output = network.output(raw)
    with torch.no_grad():
        moments = network.moments(raw)
    torch.testing.assert_close(output.depth.detach(), moments.mean, rtol=1e-5, atol=1e-4)
    assert (output.logits is raw) == network.has_dpm
    assert (output.logits is None) == (not network.has_dpm)
    assert bool(moments.std.isnan().all()) == (not network.has_dpm)
    output.depth.mean().backward()
    used = network.classifier if network.has_dpm else network.regressor
    assert used.weight.grad.abs().sum() > 0
    assert network.backbone.conv1.weight.grad.abs().sum() > 0
    unused = network.decode_head.conv_depth if network.has_dpm else network.decode_head.conv_out[0]
    assert unused.weight.grad is None


def test_a_regressed_depth_never_leaves_the_range():
    network = build_network("resnet18-regression", KITTI_BINS)
    depth = network.moments(torch.tensor([[[[-1e3, 0.0, 1e3]]]])).mean
    torch.testing.assert_close(depth.flatten(), torch.tensor([1e-3, 40.0, 80.0]))


def test_a_dpm_head_starts_from_the_labels_histogram_and_a_regression_head_from_their_mean():
    for architecture in ("mobilenetv2-fast", "mobilenetv2"):
        network = build_network(architecture, SMALL_BINS)
        shares = torch.tensor([0, 1, 2, 3, 4, 0, 0, 0, 0], dtype=torch.float64)
        network.start_from_histogram(shares)
        found = network.classifier.bias.detach().softmax(dim=0)
        torch.testing.assert_close(found, (shares / 10).float(), rtol=1e-5, atol=1e-6)
    network = build_network("resnet18-regression", SMALL_BINS)
    network.start_from_histogram(torch.tensor([0, 1, 0, 0, 3, 0, 0, 0, 0], dtype=torch.float64))
    centres = SMALL_BINS.centres()
    expected = 0.25 * centres[1] + 0.75 * centres[4]
    found = network.output(network.regressor.bias.detach()).depth
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_fresh_weights_are_drawn_as_published():
    torch.manual_seed(0)
    network = build_network("resnet18", NYU_BINS)
    block = network.backbone.layer2[0]
    assert block.bn2.weight.abs().sum() == 0  # a fresh residual branch adds nothing
    assert torch.equal(block.bn1.weight, torch.ones(128))
    assert block.conv1.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    conv = network.decode_head.conv_list[1].convA.conv
    assert conv.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert conv.bias.abs().sum() == 0
    bound = 128**-0.5  # torch's own uniform start
    assert network.classifier.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-5, 0.1)}


def test_an_unknown_architecture_is_refused_with_all_that_are_known():
    with pytest.raises(InvalidSettingError) as refused:
        build_network("resnet34", KITTI_BINS)
    for name in ARCHITECTURES:
        assert name in str(refused.value)
