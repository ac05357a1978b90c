"""The device that torch computes on, by name."""

from __future__ import annotations

import pytest
import torch

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "", "meta", "cuda:x", "cpu;"])
def test_a_device_that_does_not_exist_is_refused_by_name(name):
    with pytest.raises(InvalidSettingError, match="device must be auto, cpu, cuda or cuda:N"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_cuda_device_is_refused_with_the_way_out():
    with pytest.raises(InvalidSettingError, match="set device to auto or cpu"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")
