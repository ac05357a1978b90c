"""The runtime that needs nothing but torch.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from tiekd_ros.core.images import RgbImage, check_rgb
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.preprocessing import normalise_on_cpu, resize_image
from tiekd_ros.student.runtimes.base import (
    Prediction,
    Runtime,
    Stopwatch,
    answer_on_cpu,
    fuse_batch_norms,
    in_threads,
    prove,
    shift_logits,
)
from tiekd_ros.student.runtimes.cuda_graph import CudaPipeline


class TorchRuntime:
    """A student in torch: batch norms fused, channels last; on a GPU as CUDA graphs.

    Args:
        student: weights and card.
        device: cpu, cuda or cuda:N.
        owned: whether the student's network may be changed; otherwise it is copied first.
        like: what ran before; on a GPU, made ready for the images that it ran last.

    Raises:
        CheckpointError: the student's answer to a probe image is not finite or lies outside
            its depth range.
    """

    def __init__(
        self,
        student: Student,
        device: torch.device | str = "cpu",
        *,
        owned: bool = False,
        like: Runtime | None = None,
    ) -> None:
        self.card = student.card
        self.device = torch.device(device)
        network = student.network if owned else copy.deepcopy(student.network)
        network = fuse_batch_norms(network.eval())
        shift_logits(network)
        self._network = network.to(self.device)
        to_channels_last(self._network)
        self._pipeline: CudaPipeline | None = None
        if self.device.type == "cuda":
            self._pipeline = CudaPipeline(self.card, network, self.device)
        prove(self, has_dpm=network.has_dpm)
        how = in_threads(torch.get_num_threads())
        if self._pipeline is not None:
            if isinstance(like, TorchRuntime) and like._pipeline is not None:
                self._pipeline.follow(like._pipeline)
            how = self._pipeline.description
        self.description = f"torch, {self.device}, {how}"

    def predict(
        self,
        image: RgbImage,
        size: tuple[int, int] | None = None,
        *,
        confidence: bool = True,
    ) -> Prediction:
        """Predict depth for one RGB image, uint8 (H, W, 3); see `Runtime`."""
        check_rgb(image)
        height, width = size or image.shape[:2]
        if self._pipeline is not None:
            return self._pipeline.predict(image, (height, width), confidence=confidence)
        return self._predict_on_cpu(image, (height, width), confidence)

    @torch.inference_mode()
    def _predict_on_cpu(
        self, image: RgbImage, size: tuple[int, int], confidence: bool
    ) -> Prediction:
        watch = Stopwatch()
        x = torch.from_numpy(normalise_on_cpu(resize_image(image, self.card.input_size)))
        x = x[None].permute(0, 3, 1, 2)  # (1, 3, Hn, Wn), channels last in memory
        watch.lap()
        moments = self._network.moments(self._network(x))  # (1, 1, h, w)
        watch.lap()
        depth, sure = answer_on_cpu(self.card, moments, size, confidence)
        return Prediction(depth, sure, watch.times())


def to_channels_last(network: nn.Module) -> None:
    """Lay the weights out channels last, in place: much the faster layout for depthwise filters."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
