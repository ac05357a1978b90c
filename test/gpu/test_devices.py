"""The names of a machine's GPUs."""

from __future__ import annotations

import pytest
import torch

from tiekd_ros.core.devices import choose_device
from tiekd_ros.core.errors import InvalidSettingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_gpu_beyond_the_last_is_refused() -> None:
    count = torch.cuda.device_count()
    assert choose_device(f"cuda:{count - 1}").index == count - 1
    with pytest.raises(InvalidSettingError, match=f"torch sees {count} GPUs"):
        choose_device(f"cuda:{count}")
