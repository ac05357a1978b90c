"""A prediction on a CUDA device: three CUDA graphs with static buffers, and pinned transfers.

A student is many small kernels, and each launch costs time on the CPU; a CUDA graph launches all
of them at once. It reads and writes the same memory each time, so there is one set of graphs
for each pair of sizes of image and answer, made when they are first asked for.

Shapes: H and W the image, Hn and Wn the network's input, h and w its raw output.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from tiekd_ros.core.images import SURFACE_TOLERANCE, RgbImage
from tiekd_ros.student.architecture import DpmNetwork, Moments, StudentNetwork
from tiekd_ros.student.checkpoint import StudentCard
from tiekd_ros.student.preprocessing import DevicePreprocessing, normalise, resize_image
from tiekd_ros.student.runtimes.base import (
    Prediction,
    StageTimes,
    confidence_of,
    probe_image,
    same_depth,
)

_KEPT = 4  # pairs of sizes whose graphs are kept; a camera has one
_WARM_UPS = 3  # runs before a capture, as torch.cuda.graphs asks for

# One capture at a time: each begins with waiting for the whole device, which CUDA refuses while
# another thread captures. Replays need no lock.
_capturing = threading.RLock()
_log = logging.getLogger(__name__)


class Sizes(NamedTuple):
    """What graphs are made for, each (height, width)."""

    image: tuple[int, int]
    answer: tuple[int, int]


class CudaPipeline:
    """Runs one student, whose network is on the device, folded and channels last."""

    def __init__(self, card: StudentCard, network: StudentNetwork, device: torch.device) -> None:
        self._card = card
        self._network = choose_precision(card, network, device)
        self._device = device
        # Other work of this process leaves the device's queue to frames first.
        self._stream = torch.cuda.Stream(device, priority=-1)
        self._stages: OrderedDict[Sizes, _Stages] = OrderedDict()
        self._uncaptured: set[Sizes] = set()

    @property
    def sizes(self) -> list[Sizes]:
        """What can be run at once, the last used last."""
        return list(self._stages)

    @property
    def description(self) -> str:
        """For people: how it runs, and in which precision."""
        how = "no CUDA graph" if self._uncaptured else "CUDA graph"
        return f"{how}, {str(next(self._network.parameters()).dtype).removeprefix('torch.')}"

    @torch.inference_mode()
    def prepare(self, sizes: Sizes) -> _Stages:
        """Return the stages for these sizes; make them where there are none."""
        stages = self._stages.get(sizes)
        if stages is None:
            while len(self._stages) >= _KEPT:
                self._stages.popitem(last=False)
            stages = self._stages[sizes] = self._make(sizes)
        self._stages.move_to_end(sizes)
        return stages

    def follow(self, former: CudaPipeline) -> None:
        """Prepare for the sizes that another pipeline ran last."""
        for sizes in former.sizes[-1:]:
            self.prepare(sizes)

    def predict(self, image: RgbImage, size: tuple[int, int], *, confidence: bool) -> Prediction:
        """Predict depth for an RGB image, uint8 (H, W, 3), at a (height, width)."""
        given, wanted = (image.shape[0], image.shape[1]), self._card.input_size
        if not DevicePreprocessing.can_resize(given, wanted):
            given = (wanted.height, wanted.width)  # then the CPU resizes it
        stages = self.prepare(Sizes(given, size))
        with torch.inference_mode(), torch.cuda.device(self._device):
            return stages.run(image, confidence)

    def _make(self, sizes: Sizes) -> _Stages:
        """Return stages as CUDA graphs; where capturing has failed, as they are."""
        with _capturing, torch.cuda.device(self._device):
            preprocessing = DevicePreprocessing(sizes.image, self._card.input_size)
            preprocessing.to(self._device)
            stages = _Stages(self._card, self._network, preprocessing, sizes, self._stream)
            if sizes not in self._uncaptured:
                try:
                    stages.capture()
                except RuntimeError as error:  # torch has no other for what CUDA refuses
                    self._uncaptured.add(sizes)
                    height, width = sizes.image
                    _log.warning(
                        "no CUDA graph for images of %d x %d, which take longer so: %s",
                        width,
                        height,
                        error,
                    )
            return stages


class _Stages:
    """Buffers and stages for one pair of sizes.

    What a stage leaves for the next is kept here: it is memory that graphs read and write.
    """

    _x: Tensor
    _moments: Moments
    _maps: Tensor

    def __init__(
        self,
        card: StudentCard,
        network: StudentNetwork,
        preprocessing: nn.Module,
        sizes: Sizes,
        stream: torch.cuda.Stream,
    ) -> None:
        self._card, self._network, self._preprocessing = card, network, preprocessing
        self._sizes, self._stream = sizes, stream
        self._given = torch.zeros(*sizes.image, 3, dtype=torch.uint8, pin_memory=True)
        self._answer = torch.zeros(2, *sizes.answer, pin_memory=True)
        self._image = torch.zeros_like(self._given, device=stream.device)
        self._events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        self._launch: tuple[Callable[[], None], ...]
        self._launch = (self._preprocess, self._infer, self._postprocess)
        stream.wait_stream(torch.cuda.current_stream())  # weights and buffers come from there

    def capture(self) -> None:
        """Turn each stage, which launches kernel after kernel, into one CUDA graph.

        Raises:
            RuntimeError: CUDA refuses; the stages stay as they were.
        """
        pool = torch.cuda.graph_pool_handle()
        self._launch = tuple(_capture(stage, self._stream, pool).replay for stage in self._launch)

    def _preprocess(self) -> None:
        self._x = self._preprocessing(self._image)

    def _infer(self) -> None:
        self._moments = run_network(self._network, self._x)

    def _postprocess(self) -> None:
        self._maps = answer_maps(self._card, self._moments, self._sizes.answer)

    def run(self, image: RgbImage, confidence: bool) -> Prediction:
        preprocess, infer, postprocess = self._launch
        marks = self._events
        wanted = slice(0, 2 if confidence else 1)
        staging = time.perf_counter()
        if image.shape[:2] != self._sizes.image:
            image = resize_image(image, self._card.input_size)
        self._given.numpy()[...] = image
        staged = time.perf_counter()
        with torch.cuda.stream(self._stream):
            marks[0].record()
            self._image.copy_(self._given, non_blocking=True)
            preprocess()
            marks[1].record()
            infer()
            marks[2].record()
            postprocess()
            self._answer[wanted].copy_(self._maps[wanted], non_blocking=True)
            marks[3].record()
        marks[3].synchronize()  # waits for this stream alone, and without Python's lock
        answer = self._answer[wanted].numpy().copy()  # the buffer is the next frame's
        before, inside, after = (marks[i].elapsed_time(marks[i + 1]) for i in range(3))
        times = StageTimes((staged - staging) * 1e3 + before, inside, after)
        return Prediction(answer[0], answer[1] if confidence else None, times)


def _capture(
    stage: Callable[[], None], stream: torch.cuda.Stream, pool: Any
) -> torch.cuda.CUDAGraph:
    """Return a graph of a stage, whose replay overwrites what the stage has left here."""
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            stage()
    stream.synchronize()
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        # thread_local: meanwhile another thread may allocate memory, and replay its own graphs.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            stage()
    finally:
        torch.cuda.set_stream(current)  # torch leaves its own where a capture ends in an error
    with torch.cuda.stream(stream):
        graph.replay()  # the next stage's warm-up reads this one's output
    stream.synchronize()
    return graph


@contextmanager
def _full_float32() -> Iterator[None]:
    """Keep cuDNN from rounding float32 to TF32; a setting of the process, so under the lock."""
    with _capturing:
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before


def choose_precision(
    card: StudentCard, network: StudentNetwork, device: torch.device
) -> StudentNetwork:
    """Return a copy in half precision if it gives the same depth of a probe image.

    Args:
        card: of the student.
        network: folded, on the device; stays as it is.
        device: where it is.

    Returns:
        The copy, or the network itself where a copy in half precision would not do.
    """
    halved = use_half_precision(copy.deepcopy(network))
    if next(halved.parameters()).dtype == torch.float32:
        return network
    with _capturing, torch.inference_mode():
        x = normalise(torch.from_numpy(probe_image(card.input_size))[None].to(device))
        whole, half = (run_network(each, x).mean.cpu().numpy() for each in (network, halved))
    if same_depth(whole, half):
        return halved
    _log.warning(
        "student %s computes in float32: half precision would change its depth",
        card.version or "(unsaved)",
    )
    return network


class _Float32Conv2d(nn.Conv2d):
    """A convolution that takes its input to float32."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float())


def use_half_precision(network: StudentNetwork) -> StudentNetwork:
    """Make a network whose features are bounded compute in float16, in place.

    Not its last layer: a logit of 100 has no decimals in half precision. Others stay as they are:
    what an unbounded ReLU gives may be too large for float16. Inside, a bounded network too has
    layers with no activation behind them: `choose_precision` tries it.
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
    with _full_float32():
        return network.moments(network(x.to(first.dtype)))


def answer_maps(card: StudentCard, moments: Moments, size: tuple[int, int]) -> Tensor:
    """Return depth and confidence at a (height, width), float32 (2, height, width)."""
    maps = torch.cat((moments.mean, confidence_of(card, moments)), dim=1)  # (1, 2, h, w)
    if maps.shape[2:] == size:
        return maps[0]
    smooth = functional.interpolate(maps, size, mode="bilinear")[0]
    nearest = functional.interpolate(maps[:, :1], size, mode="nearest-exact")[0, 0]
    on_surface = (smooth[0] - nearest).abs() <= SURFACE_TOLERANCE * nearest  # as in `resize_depth`
    return torch.stack((torch.where(on_surface, smooth[0], nearest), smooth[1]))
