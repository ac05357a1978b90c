"""The cases of student.py: networks in runtimes, started in one call, with what they cost."""

from __future__ import annotations

import gc
import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import depth_anything
import numpy as np
import torch
from harness import memory_mib, peak_mib
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tiekd_ros.core.images import RgbImage
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard
from tiekd_ros.student.networks import DEFAULT_ARCHITECTURE
from tiekd_ros.student.networks.official import KITTI_BINS
from tiekd_ros.student.preprocessing import normalise, resize_image
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

OURS, PUBLISHED, DEPTH_ANYTHING = DEFAULT_ARCHITECTURE, "mobilenetv2", "depth-anything-v2-small"
TORCH, ONNXRUNTIME = "torch", "onnxruntime"
EAGER, EAGER_LAST = "eager", "eager, channels last"
"""The same network in torch as a user would write it: no fused batch norms, no own layout."""

IMAGE = (480, 640)
"""Height and width of the camera's image; every case starts from it, and ours answer at it."""

Run = Callable[[RgbImage], object]


@dataclass(frozen=True)
class Case:
    """One network in one runtime at one input size."""

    network: str
    runtime: str
    height: int = IMAGE[0]
    width: int = IMAGE[1]
    threads: int = 1
    device: str = "cpu"

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    @property
    def is_slow(self) -> bool:
        """True where one frame takes most of a second on a small CPU, or more."""
        return self.network != OURS and self.device == "cpu"

    def student(self) -> Student:
        """Return an untrained student: its speed does not depend on its weights."""
        torch.manual_seed(0)
        bins = KITTI_BINS if self.network == PUBLISHED else DepthBins()
        size = InputSize(self.height, self.width)
        return Student.fresh(StudentCard(bins=bins, input_size=size, architecture=self.network))

    def start(self) -> Run:
        """Return what turns a camera image into a depth map, warmed."""
        torch.set_num_threads(self.threads)
        if self.network == DEPTH_ANYTHING and self.runtime == ONNXRUNTIME:
            run = depth_anything.start_onnxruntime(self.size, self.threads)
        elif self.network == DEPTH_ANYTHING:
            run = depth_anything.start_torch(self.size, self.device)
        elif self.runtime in (EAGER, EAGER_LAST):
            run = self._start_eager()
        else:
            factory = RuntimeFactory(torch.device(self.device), self.runtime, self.threads)
            return factory.make(self.student()).predict  # has warmed itself
        run(camera_image())
        return run

    def _start_eager(self) -> Run:
        is_last = self.runtime == EAGER_LAST
        layout = torch.channels_last if is_last else torch.contiguous_format
        student = self.student()
        network = student.network.eval().to(self.device)
        if is_last:
            network = network.to(memory_format=layout)

        @torch.inference_mode()
        def run(image: RgbImage) -> object:
            resized = resize_image(image, student.card.input_size)
            batch = torch.from_numpy(resized)[None].to(self.device)
            return network.predict_depth(normalise(batch).contiguous(memory_format=layout)).cpu()

        return run

    def cost(self) -> tuple[float, float]:
        """Return millions of parameters and, of one frame, 10^9 multiply-accumulates.

        These are half the operations that torch counts: convolutions and matrix products, of
        attention too. Nothing runs.
        """
        network: nn.Module
        if self.network == DEPTH_ANYTHING:
            network = depth_anything.build_network()
        else:
            network = self.student().network.eval()
        x = torch.zeros(1, 3, *self.size, device="meta")
        counter = FlopCounterMode(display=False)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
            network.to("meta")(x)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        return parameters / 1e6, counter.get_total_flops() / 2e9

    def memory_mib(self) -> float:
        """Return this process's peak while frames run, above what it held with all libraries.

        What the start took for a while (the export to onnxruntime) is given back, not counted.
        """
        for package in ("onnx", "onnxruntime") if self.runtime == ONNXRUNTIME else ():
            importlib.import_module(package)
        if self.network == DEPTH_ANYTHING:
            depth_anything.build_network()
        before = memory_mib("VmRSS")
        run = self.start()
        gc.collect()
        image, frames = camera_image(), 1 if self.is_slow else 3
        return peak_mib(lambda: [run(image) for _ in range(frames)], above=before)


def camera_image() -> RgbImage:
    return np.random.default_rng(0).integers(0, 256, (*IMAGE, 3), np.uint8)


def roofline_gmacs(threads: int, side: int = 2048) -> float:
    """Return the best of some float32 matrix products, 10^9 multiply-accumulates a second."""
    torch.set_num_threads(threads)
    a, b = torch.randn(side, side), torch.randn(side, side)
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return side**3 / min(seconds) / 1e9


def all_cores() -> int:
    return len(os.sched_getaffinity(0))
