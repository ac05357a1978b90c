"""A first student: its settings, range, input size, and the weights that it starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from tiekd_ros.core.errors import RoundRefusedError
from tiekd_ros.core.images import DepthMap
from tiekd_ros.core.settings import Settings, setting
from tiekd_ros.method.calibration import label_factor, scale_for
from tiekd_ros.method.samples import Sample, spread
from tiekd_ros.student.architecture import InputSize, StudentNetwork
from tiekd_ros.student.base_student import depth_scale, load_base, start_from_base
from tiekd_ros.student.bins import LOG, UNIFORM, DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard, TargetWidth
from tiekd_ros.student.networks import ARCHITECTURES, DEFAULT_ARCHITECTURE, build_network
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

BASE_START, RANDOM_START = "base", "random"
STARTS = (BASE_START, RANDOM_START)
_RANGES_M = (10.0, 20.0, 40.0, 80.0, 200.0)
_CALIBRATION_FRAMES = 24
"""Training frames, of a first round's, that its base is calibrated to."""


@dataclass(frozen=True)
class StudentSettings(Settings):
    """The shape of a first student; later ones inherit it from their parent."""

    architecture: str = setting(
        DEFAULT_ARCHITECTURE,
        "the network; one without a depth probability map (regression) gives no confidence and "
        "needs another loss.objective",
        choices=tuple(ARCHITECTURES),
    )
    start: str = setting(
        BASE_START,
        "weights to start from: the base student that ships for the architecture (base; where "
        "none ships, random ones), or random ones",
        choices=STARTS,
    )
    pixels: int = setting(
        71680, "network input size; its aspect ratio is the camera's", minimum=4096, maximum=2**24
    )
    bins: int = setting(257, "number of depth bins", minimum=2, maximum=4096)
    min_depth_m: float = setting(
        0.1, "near end of the depth range", unit="m", minimum=1e-3, maximum=100.0
    )
    max_depth_m: float = setting(
        0.0,
        "far end of the depth range; 0 = from the first labels (10, 20, 40, 80 or 200 m)",
        unit="m",
        minimum=0.0,
        maximum=1000.0,
    )
    spacing: str = setting(
        UNIFORM,
        "depth bins of equal width, or of equal relative width (log)",
        choices=(UNIFORM, LOG),
    )

    @property
    def weights(self) -> str:
        """What the start comes to: `base` only where a base ships for the architecture."""
        return self.start if ARCHITECTURES[self.architecture].base else RANDOM_START


def first_bins(depths: Sequence[DepthMap], settings: StudentSettings) -> DepthBins:
    """Return the bins of a first student; the range holds 99.5 % of the labels if not given.

    Raises:
        RoundRefusedError: no label has a known pixel.
    """
    far = settings.max_depth_m
    if far == 0:
        known = [d[np.isfinite(d)][::16] for d in depths]
        pixels = np.concatenate(known) if known else np.empty(0, np.float32)
        if pixels.size == 0:
            raise RoundRefusedError("no labelled frame has a known depth; look at the teacher")
        reach = float(np.percentile(pixels, 99.5))
        far = next((r for r in _RANGES_M if r >= reach), _RANGES_M[-1])
    return DepthBins(settings.bins, settings.min_depth_m, far, settings.spacing)


def first_input_size(height: int, width: int, settings: StudentSettings) -> InputSize:
    """Return the input size of a first student for images of this size."""
    return InputSize.near(height, width, settings.pixels)


def median_focal(samples: Sequence[Sample]) -> tuple[float, float] | None:
    """Return the median focal lengths (fx, fy) in pixels of samples, None where none has any."""
    known = [s.intrinsics for s in samples if s.intrinsics is not None]
    if not known:
        return None
    return float(np.median([k.fx for k in known])), float(np.median([k.fy for k in known]))


def first_student(
    samples: Sequence[Sample],
    size: InputSize,
    settings: StudentSettings,
    target: TargetWidth,
    base: Student | None = None,
) -> Student:
    """Return the student that a first round trains; its card's `training` says the start.

    A base is calibrated to the frames first: a focal length that is wrong or not known does little
    harm.

    Args:
        samples: the training frames in the order of time; they give range and focal length.
        size: the network's input size, that of the samples.
        settings: bins and start.
        target: how wide the target of the training is.
        base: another base than the one that ships.

    Raises:
        RoundRefusedError: no sample has a pixel of known depth.
        CheckpointError: the base student that ships is missing or damaged.
    """
    bins = first_bins([s.depth for s in samples], settings)
    if base is None and settings.weights != BASE_START:
        network = build_network(settings.architecture, bins)
        random = {"start": RANDOM_START}
        card = StudentCard(bins, size, settings.architecture, target, training=random)
        return Student(card, network)
    base = base or load_base(settings.architecture)
    focal = median_focal(samples)
    few = spread(samples, _CALIBRATION_FRAMES)
    factor = label_factor(list(base_depths(base, few, size, focal)), [s.depth for s in few])
    scale = scale_for(factor)
    return calibrated_student(base, scale, bins, size, focal, target)


def base_depths(
    base: Student,
    samples: Sequence[Sample],
    size: InputSize,
    focal_px: tuple[float, float] | None,
) -> Iterator[DepthMap]:
    """Yield what a base says of each sample, (Hn, Wn) in metres of the samples' camera.

    Args:
        base: as it ships, for its own camera and range.
        samples: frames at the network's input size.
        size: that size.
        focal_px: focal lengths (fx, fy) at it; None = not known, the base's own are assumed.
    """
    scale = 1.0 if focal_px is None else depth_scale(base.card, size, mean_focal(focal_px))
    runtime = TorchRuntime(replace(base, card=replace(base.card, input_size=size)))
    for sample in samples:
        said = runtime.predict(sample.image, confidence=False).depth
        yield (scale * said).astype(np.float32)


def calibrated_student(
    base: Student,
    scale: float,
    bins: DepthBins,
    size: InputSize,
    focal_px: tuple[float, float] | None,
    target: TargetWidth,
) -> Student:
    """Return a first student that is a base with other bins and a scale, untrained.

    Args:
        base: what it starts from.
        scale: of what `base_depths` gives with these focal lengths.
        bins: of the new student.
        size: its input size.
        focal_px: focal lengths (fx, fy) of its camera at that size, None = not known.
        target: how wide the target of its training is.
    """
    focal = None if focal_px is None else mean_focal(focal_px)
    network = start_from_base(bins, size, focal, base, scale=scale)
    training = {
        "start": BASE_START,
        "scale": round(scale, 4),
        "focal_px_known": focal_px is not None,
    }
    architecture = base.card.architecture
    return Student(StudentCard(bins, size, architecture, target, training=training), network)


def mean_focal(focal_px: tuple[float, float]) -> float:
    """Return the one focal length that stands for (fx, fy)."""
    return float((focal_px[0] * focal_px[1]) ** 0.5)


def first_network(
    architecture: str,
    bins: DepthBins,
    size: InputSize,
    start: str,
    focal_px: tuple[float, float] | None,
) -> StudentNetwork:
    """Return a network that starts from its architecture's base, or from random weights.

    Args:
        architecture: a name in `ARCHITECTURES`; one with a base, to start from it.
        bins: of the new student.
        size: its input size.
        start: one of `STARTS`.
        focal_px: focal lengths (fx, fy) of the camera at the network's input size, if known.
    """
    if start != BASE_START:
        return build_network(architecture, bins)
    focal = None if focal_px is None else mean_focal(focal_px)
    return start_from_base(bins, size, focal, architecture=architecture)


def start_from_label_histogram(network: StudentNetwork, depths: Sequence[DepthMap]) -> None:
    """Set the head's bias so that the first answer is the labels' own distribution."""
    known = np.concatenate([depth[np.isfinite(depth)][::16] for depth in depths])
    counts, _ = np.histogram(known, bins=network.bins.edges().numpy())
    smooth = (counts + 1e-3 * max(counts.sum(), 1)) / (counts.sum() + 1e-9)
    network.start_from_histogram(torch.from_numpy(smooth))
