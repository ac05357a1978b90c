"""What a trained network can be spared at run time: batch norms, and the softmax's maximum."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from tiekd_ros.student.architecture import SHIFT, DpmNetwork, StudentNetwork

_HIGHEST = 80.0  # exp of it, times 4096 bins, still is a float32
_MEANINGFUL = 1e6  # larger logits have lost their decimals


def fuse_batch_norms(network: StudentNetwork) -> StudentNetwork:
    """Fold every batch norm of a network in eval mode into its convolution, in place.

    All networks here register a batch norm right behind the convolution that feeds it.
    """
    for parent in list(network.modules()):
        for (_, before), (name, norm) in itertools.pairwise(parent.named_children()):
            if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                _fuse(before, norm)
                setattr(parent, name, nn.Identity())
    return network


def _fuse(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


@torch.no_grad()
def shift_logits(network: StudentNetwork) -> bool:
    """Fold a shift into the last layer that keeps exp(logits) a number; return whether it did.

    softmax(z) = softmax(z - s) for any s. The usual s, the largest logit of each pixel, costs two
    passes over all logits. Their mean over the bins is as linear as the layer itself: taking
    the weights' mean over the bins away from the weights shifts all logits by it for free. The
    largest logit then is >= 0, so the sum of exp cannot vanish; that it cannot overflow has to
    be shown. Where the layer's input lies in 0 .. L, no logit of bin c can be above
    b_c + L sum_i max(0, w_ci). float32 leaves room from exp(-87) to exp(88); the bias takes
    another `SHIFT` away to use it on both sides. Where that is not enough, or L is not known,
    nothing is changed and `moments` takes the largest logit as ever.
    """
    if not isinstance(network, DpmNetwork) or network.shifted:
        return isinstance(network, DpmNetwork) and network.shifted
    layer = network.classifier
    assert layer.bias is not None
    weight, bias = layer.weight.double(), layer.bias.double()  # (C, K, 1, 1), (C)
    limit = network.feature_limit
    sized = bias.abs() + limit * weight.abs().sum(dim=(1, 2, 3))  # |logit| at most, by bin
    weight, bias = weight - weight.mean(dim=0), bias - bias.mean() - SHIFT
    highest = bias + limit * weight.clamp_min(0).sum(dim=(1, 2, 3))
    if not (bool(sized.max() < _MEANINGFUL) and bool(highest.max() < _HIGHEST)):  # NaN neither
        return False
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
    network.shifted = True
    return True
