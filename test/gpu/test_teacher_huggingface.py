"""On a GPU a checkpoint runs in half precision and labels as it does on a CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from helpers.checkpoints import write_depth_anything, write_depth_pro, write_glpn, write_zoe
from helpers.teachers import INTRINSICS, picture
from tiekd_ros.teacher.backends.huggingface import HuggingFaceSettings
from tiekd_ros.teacher.protocol import DepthRequest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("write", [write_depth_anything, write_glpn, write_zoe, write_depth_pro])
def test_half_precision_on_the_gpu_labels_as_the_cpu_does(tmp_path, write):
    folder = str(write(tmp_path / "net"))
    gpu, cpu = (
        HuggingFaceSettings(model=folder, device=device).build() for device in ("auto", "cpu")
    )
    assert gpu.identity == cpu.identity
    images = [picture(seed, 128, 96) for seed in range(4)]
    requests = [DepthRequest(b"", INTRINSICS, 0, "")] * 4
    for ours, theirs in zip(
        gpu.infer_batch(images, requests), cpu.infer_batch(images, requests), strict=True
    ):
        known = np.isfinite(ours.depth) & np.isfinite(theirs.depth)
        assert known.mean() > 0.9 * np.isfinite(theirs.depth).mean()
        error = np.abs(ours.depth - theirs.depth)[known] / theirs.depth[known]
        assert float(np.median(error)) < 0.02
