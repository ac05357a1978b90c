"""A prediction on a CUDA device: three CUDA graphs with static buffers, and pinned transfers.

Launching the student's 200 small kernels one by one takes longer than running them. A CUDA graph
launches them as one. It reads and writes the same memory each time, so there is one set of
graphs for each pair of sizes of image and answer, made when they are first asked for.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.images import RgbImage
from tiekd_ros.student.architecture import DpmNetwork, Moments, StudentNetwork
from tiekd_ros.student.card import StudentCard
from tiekd_ros.student.preprocessing import DevicePreprocessing, resize_image
from tiekd_ros.student.runtime import Prediction, StageTimes, confidence_of

_KEPT = 4  # pairs of sizes whose graphs are kept; a camera has one
_WARM_UPS = 3  # runs before a capture, as torch.cuda.graphs asks for
_Result = TypeVar("_Result")


class Sizes(NamedTuple):
    """What graphs are made for, each (height, width)."""

    image: tuple[int, int]
    answer: tuple[int, int]


class CudaPipeline:
    """Runs one student, whose network is on the device, folded and channels last."""

    def __init__(self, card: StudentCard, network: StudentNetwork, device: torch.device) -> None:
        self._card = card
        self._network = use_half_precision(network)
        self._device = device
        # Other work of this process leaves the device's queue to frames first.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._stages: dict[Sizes, _Stages] = {}

    @property
    def sizes(self) -> list[Sizes]:
        """What graphs exist for, the oldest first."""
        return list(self._stages)

    @torch.inference_mode()
    def prepare(self, sizes: Sizes) -> _Stages:
        """Return the graphs for these sizes; make them where there are none."""
        if sizes not in self._stages:
            while len(self._stages) >= _KEPT:
                del self._stages[next(iter(self._stages))]
            with torch.cuda.device(self._device):
                preprocessing = DevicePreprocessing(sizes.image, self._card.input_size)
                self._stages[sizes] = _Stages(
                    self._card,
                    self._network,
                    preprocessing.to(self._device),
                    sizes,
                    self._stream,
                )
        return self._stages[sizes]

    def predict(self, image: RgbImage, size: tuple[int, int], *, confidence: bool) -> Prediction:
        """Predict depth for an RGB image, uint8 (H, W, 3), at a (height, width)."""
        if not DevicePreprocessing.can_resize(image.shape[:2], self._card.input_size):
            image = resize_image(image, self._card.input_size)
        stages = self.prepare(Sizes((image.shape[0], image.shape[1]), size))
        with torch.inference_mode(), torch.cuda.device(self._device):
            return stages.run(image, confidence)


class _Stages:
    """Buffers and graphs for one pair of sizes."""

    def __init__(
        self,
        card: StudentCard,
        network: StudentNetwork,
        preprocessing: nn.Module,
        sizes: Sizes,
        stream: torch.cuda.Stream,
    ) -> None:
        self._stream = stream
        self._given = torch.zeros(*sizes.image, 3, dtype=torch.uint8, pin_memory=True)
        self._answer = torch.zeros(2, *sizes.answer, pin_memory=True)
        image = torch.zeros_like(self._given, device=stream.device)
        pool = torch.cuda.graph_pool_handle()
        prepare, x = _capture(lambda: preprocessing(image), stream, pool)
        run, moments = _capture(lambda: run_network(network, x), stream, pool)
        finish, maps = _capture(lambda: answer_maps(card, moments, sizes.answer), stream, pool)
        self._image, self._maps = image, maps
        self._graphs = (prepare, run, finish)
        self._between = (preprocessing, x, moments)  # memory that graphs read is not to be freed
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]

    def run(self, image: RgbImage, confidence: bool) -> Prediction:
        prepare, run, finish = self._graphs
        marks = self._events
        wanted = slice(0, 2 if confidence else 1)
        self._given.numpy()[...] = image
        with torch.cuda.stream(self._stream):
            marks[0].record()
            self._image.copy_(self._given, non_blocking=True)
            prepare.replay()
            marks[1].record()
            run.replay()
            marks[2].record()
            finish.replay()
            self._answer[wanted].copy_(self._maps[wanted], non_blocking=True)
            marks[3].record()
        marks[3].synchronize()  # waits for this stream alone, and without Python's lock
        answer = self._answer[wanted].numpy().copy()  # the buffer is the next frame's
        times = StageTimes(*(marks[i].elapsed_time(marks[i + 1]) for i in range(3)))
        return Prediction(answer[0], answer[1] if confidence else None, times)


def _capture(
    compute: Callable[[], _Result], stream: torch.cuda.Stream, pool: Any
) -> tuple[torch.cuda.CUDAGraph, _Result]:
    """Return a graph of a computation and its output, which each replay overwrites."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            compute()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    # thread_local: another student may be answering frames in another thread meanwhile.
    with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
        output = compute()
    with torch.cuda.stream(stream):
        graph.replay()  # the next stage's warm-up reads this one's output
    stream.synchronize()
    return graph, output


class _Float32Conv2d(nn.Conv2d):
    """A convolution that takes its input to float32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


def use_half_precision(network: StudentNetwork) -> StudentNetwork:
    """Make a network whose activations are bounded compute in float16, in place.

    Not its last layer: a logit of 100 has no decimals in half precision. Others stay as they are:
    what an unbounded ReLU gives may be too large for float16.
    """
    if not isinstance(network, DpmNetwork) or not math.isfinite(network.feature_limit):
        return network
    last = network.classifier
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer is not last:
            layer.half()
    last.__class__ = _Float32Conv2d
    return network


def run_network(network: StudentNetwork, x: Tensor) -> Moments:
    """Return moments, float32 (1, 1, h, w), for normalised RGB, float32 (1, 3, Hn, Wn)."""
    first = next(network.parameters())
    return network.moments(network(x.to(first.dtype)))


def answer_maps(card: StudentCard, moments: Moments, size: tuple[int, int]) -> Tensor:
    """Return depth and confidence at a (height, width), float32 (2, height, width)."""
    maps = torch.cat((moments.mean, confidence_of(card, moments)), dim=1)  # (1, 2, h, w)
    if maps.shape[2:] != size:
        maps = functional.interpolate(maps, size, mode="bilinear")
    return maps[0]
