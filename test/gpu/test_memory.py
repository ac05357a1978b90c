"""A CUDA device's memory: what a node holds of it, and gives back when it is cleaned up."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest
import torch

from helpers.students import small_student
from tiekd_ros.core.devices import choose_device
from tiekd_ros.nodes.common.reporting import gpu_memory_mb
from tiekd_ros.nodes.common.run import release_memory
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def held_mb() -> float:
    found = gpu_memory_mb()
    assert found is not None
    return found[0]


def test_what_a_student_took_is_given_back() -> None:
    torch.zeros(1, device="cuda")
    release_memory()
    before = held_mb()
    with ExitStack() as held:
        held.callback(release_memory)
        runtime = RuntimeFactory(choose_device("cuda"), "torch").make(small_student())
        runtime.predict(np.zeros((480, 640, 3), np.uint8), (480, 640))
        ballast = torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda")
        assert held_mb() >= before + 64
        del runtime, ballast
    assert held_mb() <= before + 32
