"""The base student's training: an encoder with ImageNet weights learns depth.

Each batch mixes random views of random worlds, whose depth is exact, with real frames. The encoder
moves at a small part of the rate, with the batch norms' statistics of ImageNet: what it knows of
real pictures must not give way to synthetic ones. Whenever the training is stopped, its last
snapshot is usable.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cv2
import imagenet_encoder
import numpy as np
import numpy.typing as npt
import torch
from random_world import HELD_OUT_SEEDS_FROM, TRAINING_SEEDS_FROM, RandomisedWorld
from torch import Tensor

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.images import DepthMap
from tiekd_ros.datasets import RgbdFolder
from tiekd_ros.method.comparison import constant_predictor, mean_errors, student_predictor
from tiekd_ros.method.losses import DistillationLoss, LossSettings, at_edges
from tiekd_ros.method.samples import AugmentSettings, Sample, augment, fit_sample
from tiekd_ros.method.stepping import BadSteps, Stepper, average_batch_norms, make_optimizer
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard, StudentStatus, save_student
from tiekd_ros.student.networks.efficientnet import EfficientNetStudent
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime, to_channels_last

ARCHITECTURE = "efficientnet-lite0"
CANONICAL_FOCAL_PX = 160.0
BINS = DepthBins(count=257, min_depth_m=0.1, max_depth_m=12.0)
SIZE = InputSize(height=160, width=224)
SIZES = ((InputSize(height=96, width=128), 8), (SIZE, 3), (InputSize(height=224, width=320), 2))
"""Input sizes with the images of a step: a step costs about the same time at each."""
FIRST_SHARES, LAST_SHARES = (1.0, 0.0, 0.0), (0.3, 0.45, 0.25)
"""How often each size is drawn at the start and at the end: small pictures teach much early."""
AUGMENT = AugmentSettings(flip=0.5, zoom=1.4, brightness=0.35, gamma=0.35, colour=0.15)
LOSS = LossSettings(edge_focus=4.0)

EDGE_REACH = 0.01
"""Of the image's width: so near to an edge a sensor's depth is not trusted."""

HELD_OUT_SEEDS, HELD_OUT_VIEWS = range(HELD_OUT_SEEDS_FROM, HELD_OUT_SEEDS_FROM + 12), 8
FEWEST_WORLDS = 12  # training starts when so many are there
WARM_UP = 0.04
AVERAGE = 0.995  # of the weights, a step: about the last 200 steps
SNAPSHOT_EVERY_S = 300.0
CLIP_NORM = 10.0


WIDTH, HEIGHT = 320, 224


@dataclass(frozen=True)
class StoredView:
    """Image uint8 (H, W, 3), depth (H, W) in metres, NaN = unknown, and intrinsics."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.floating[Any]]
    intrinsics: Intrinsics

    def canonical(self, size: InputSize) -> Sample:
        """Return the view at a network's size, depth as the canonical camera would have it.

        What a lens of focal length f shows at depth z looks, pixel by pixel, like what one of
        f_c shows at z f_c / f. Depth is multiplied by f_c / f, so one network serves all
        lenses. Lenses are compared at the canonical size: resolution changes no depth.
        """
        fitted = fit_sample(self.image, self.depth.astype(np.float32), self.intrinsics, size)
        shrunk = (SIZE.height * SIZE.width / (size.height * size.width)) ** 0.5
        focal = (fitted.intrinsics.fx * fitted.intrinsics.fy) ** 0.5 * shrunk
        return replace(fitted, depth=fitted.depth * np.float32(CANONICAL_FOCAL_PX / focal))


def world_file(folder: Path, seed: int) -> Path:
    """Return where the views of a world are kept."""
    return folder / f"world_{seed:06d}.npz"


def render_worlds(folder: Path, seeds: Sequence[int], views: int) -> None:
    """Render what is missing; files appear whole."""
    for seed in seeds:
        path = world_file(folder, seed)
        if path.exists():
            continue
        world = RandomisedWorld(seed)
        shown = [world.view(index, WIDTH, HEIGHT) for index in range(views)]
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                images=np.stack([v.image for v in shown]),
                depths=np.stack([v.depth for v in shown]).astype(np.float16),
                cameras=np.array([v.intrinsics.as_tuple() for v in shown]),
            )
        os.replace(part, path)


def load_world(path: Path) -> list[StoredView]:
    """Read the views of one world."""
    with np.load(path) as file:
        images, depths, cameras = file["images"], file["depths"], file["cameras"]
    return [
        StoredView(image, depth, Intrinsics(*(float(v) for v in camera)))
        for image, depth, camera in zip(images, depths, cameras, strict=True)
    ]


def degrade(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return a sample as a worse camera would have it: blurred, noisy, coded, grey, tilted."""
    image, depth = sample.image, sample.depth
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.2))
    if rng.random() < 0.2:
        image = cv2.filter2D(image, -1, _motion(rng.uniform(3, 7), rng.uniform(0, 180)))
    if rng.random() < 0.4:
        noisy = image + rng.normal(0, rng.uniform(2, 12), image.shape)
        image = np.clip(noisy, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 80))]
        image = cv2.imdecode(cv2.imencode(".jpg", image, quality)[1], cv2.IMREAD_COLOR)
    if rng.random() < 0.1:
        image = np.repeat(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    if rng.random() < 0.4:
        height, width = depth.shape
        middle = (width / 2 - 0.5, height / 2 - 0.5)
        turn = cv2.getRotationMatrix2D(middle, rng.uniform(-8, 8), 1.0)
        image = cv2.warpAffine(image, turn, (width, height), borderMode=cv2.BORDER_REFLECT)
        depth = cv2.warpAffine(
            depth, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=float("nan")
        )
    return replace(sample, image=image, depth=depth)


def _motion(length: float, degrees: float) -> npt.NDArray[np.float32]:
    """Return the kernel of a motion over so many pixels, in this direction."""
    size = 2 * int(np.ceil(length / 2)) + 1
    kernel = np.zeros((size, size), np.float32)
    turned = np.deg2rad(degrees)
    for step in np.linspace(-length / 2, length / 2, 8 * size):
        row, column = size // 2 + step * np.sin(turned), size // 2 + step * np.cos(turned)
        kernel[round(row), round(column)] = 1
    return kernel / kernel.sum()


def load_frames(folder: Path) -> list[StoredView]:
    """Read the frames of an RGB-D folder, without depth at its edges, where a sensor is wrong.

    SystemExit where its camera's lens is not known.
    """
    frames = RgbdFolder(folder)
    lens = frames.intrinsics
    if lens is None:
        raise SystemExit(f"{folder} has no K.txt: depth of an unknown lens teaches no size")
    return [
        StoredView(frames.image(i), without_edges(frames.depth(i)), lens)
        for i in range(len(frames))
    ]


def licence_of(folder: Path) -> str:
    """Return the first line of a folder's LICENSE."""
    path = folder / "LICENSE"
    lines = path.read_text().strip().splitlines() if path.exists() else []
    return lines[0] if lines else "not stated"


def without_edges(depth: DepthMap) -> DepthMap:
    """Return depth (H, W), unknown (NaN) where an edge is near."""
    reach = max(1, round(EDGE_REACH * depth.shape[1]))
    edges = at_edges(torch.from_numpy(depth)[None, None], reach)[0, 0].numpy()
    return np.where(edges, np.float32(np.nan), depth)


@dataclass(frozen=True)
class Recipe:
    """The settings of one run."""

    minutes: float
    worlds: int
    views: int
    seed: int
    output: Path
    cache: Path
    frames: tuple[Path, ...] = ()
    """RGB-D folders of real frames."""
    real_share: float = 0.25
    """Of the images of a batch; each folder gives as many as any other."""
    rate: float = 4e-3
    encoder_rate: float = 0.1
    """Of the encoder, as a part of `rate`."""
    weight_decay: float = 0.02

    @property
    def seeds(self) -> range:
        """World seeds to train on."""
        return range(TRAINING_SEEDS_FROM, TRAINING_SEEDS_FROM + self.worlds)


def render_all(cache: Path, seeds: range, views: int) -> None:
    """Render the held-out worlds, then the training worlds: the body of a process of its own."""
    cv2.setNumThreads(1)
    render_worlds(cache, HELD_OUT_SEEDS, HELD_OUT_VIEWS)
    render_worlds(cache, seeds, views)


def make(recipe: Recipe, say: Callable[[str], None]) -> None:
    """Render worlds and train on them meanwhile; write snapshots into the output folder."""
    recipe.cache.mkdir(parents=True, exist_ok=True)
    recipe.output.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context("spawn").Process(
        target=render_all, args=(recipe.cache, recipe.seeds, recipe.views), daemon=True
    )
    process.start()
    try:
        _Run(recipe, process.is_alive, say).train()
    finally:
        process.terminate()
        process.join()


class _Pool:
    """The training views that have been rendered so far."""

    def __init__(self, recipe: Recipe, is_rendering: Callable[[], bool]) -> None:
        self._missing = [world_file(recipe.cache, s) for s in recipe.seeds]
        self._is_rendering = is_rendering
        self.views: list[StoredView] = []
        self.worlds = 0

    def refresh(self) -> None:
        """Take in what is there by now."""
        there = [p for p in self._missing if p.exists()]
        for path in there:
            self.views += load_world(path)
        self.worlds += len(there)
        self._missing = [p for p in self._missing if p not in there]

    def wait_for(self, number: int) -> None:
        """Wait until so many worlds are there."""
        while self.worlds < number and self._missing:
            alive = self._is_rendering()  # asked first: what it wrote last must be seen
            self.refresh()
            if self.worlds < number and not alive and self._missing:
                raise SystemExit("the rendering process ended early; see its message above")
            time.sleep(0.2)


class _Run:
    def __init__(
        self, recipe: Recipe, is_rendering: Callable[[], bool], say: Callable[[str], None]
    ) -> None:
        torch.manual_seed(recipe.seed)
        self._recipe, self._say = recipe, say
        self._rng = np.random.default_rng(recipe.seed)
        self._pool = _Pool(recipe, is_rendering)
        self._pool.wait_for(min(FEWEST_WORLDS, recipe.worlds))
        paths = [world_file(recipe.cache, seed) for seed in HELD_OUT_SEEDS]
        self._held_out = [view.canonical(SIZE) for path in paths for view in load_world(path)]
        self._real = [load_frames(folder) for folder in recipe.frames]
        network = EfficientNetStudent(BINS)
        network.backbone.load_state_dict(imagenet_encoder.load())
        self._network = network
        to_channels_last(self._network)
        self._average = copy.deepcopy(self._network)
        objective = DistillationLoss(BINS, LOSS)
        self._stepper = Stepper(
            self._network,
            make_optimizer(network, recipe.rate, recipe.weight_decay, recipe.encoder_rate),
            lambda raw, depth: objective(self._network.output(raw), depth),
            clip_norm=CLIP_NORM,
            frozen=network.backbone,
        )
        self._bad = BadSteps()
        self._step, self._start = 0, time.monotonic()
        self._recent: list[tuple[float, float]] = []

    def train(self) -> None:
        """Train for the minutes given, then write the last snapshot."""
        self._start_from_histogram()
        self._start = time.monotonic()
        snapshot_at, said_at = SNAPSHOT_EVERY_S, 0.0
        while (elapsed := time.monotonic() - self._start) < 60 * self._recipe.minutes:
            self._train_step(elapsed / (60 * self._recipe.minutes))
            if self._step % 50 == 0:
                self._pool.refresh()
            if elapsed >= said_at:
                self._report(elapsed)
                said_at = elapsed + 30
            if elapsed >= snapshot_at:
                self._snapshot(elapsed, is_last=False)
                snapshot_at = time.monotonic() - self._start + SNAPSHOT_EVERY_S
        self._snapshot(time.monotonic() - self._start, is_last=True)

    def _train_step(self, done: float) -> None:
        did = self._stepper.step(*self._draw(done), self._rate(done))
        self._step += 1
        if did is None:
            self._bad.bad(self._step)
            return
        self._bad.good()
        self._recent.append((did.parts.kl.item(), did.parts.ssim.item()))
        share = min(AVERAGE, self._step / (self._step + 10))
        with torch.no_grad():
            for mean, new in zip(
                self._average.parameters(), self._network.parameters(), strict=True
            ):
                mean.lerp_(new, 1 - share)

    def _rate(self, done: float) -> float:
        if done < WARM_UP:
            return self._recipe.rate * (0.1 + 0.9 * done / WARM_UP)
        falling = (done - WARM_UP) / (1 - WARM_UP)
        return self._recipe.rate * max(0.5 * (1 + math.cos(math.pi * falling)), 2e-3)

    def _draw(self, done: float) -> tuple[Tensor, Tensor]:
        shares = (1 - done) * np.array(FIRST_SHARES) + done * np.array(LAST_SHARES)
        size, batch = SIZES[int(self._rng.choice(len(SIZES), p=shares))]
        samples = [self._draw_one(size) for _ in range(batch)]
        images = torch.from_numpy(np.stack([s.image for s in samples]))
        depth = torch.from_numpy(np.stack([s.depth for s in samples]))
        return normalise(images), depth[:, None]

    def _draw_one(self, size: InputSize) -> Sample:
        views = self._pool.views
        if self._real and self._rng.random() < self._recipe.real_share:
            views = self._real[self._rng.integers(len(self._real))]
        view = views[self._rng.integers(len(views))]
        return degrade(augment(view.canonical(size), AUGMENT, self._rng), self._rng)

    def _start_from_histogram(self) -> None:
        depth = np.concatenate([self._draw(0.5)[1].numpy().ravel() for _ in range(30)])
        counts, _ = np.histogram(depth[np.isfinite(depth)], bins=BINS.edges().numpy())
        shares = torch.from_numpy((counts + 1e-3 * counts.sum()) / counts.sum())
        for network in (self._network, self._average):
            network.start_from_histogram(shares)

    def _report(self, elapsed: float) -> None:
        kl, ssim = np.mean(self._recent[-100:], axis=0) if self._recent else (math.nan, math.nan)
        self._say(
            f"{elapsed / 60:6.1f} min  step {self._step:6d}  worlds {self._pool.worlds:4d}  "
            f"kl {kl:.3f}  ssim {ssim:.3f}"
        )

    @torch.no_grad()
    def _snapshot(self, elapsed: float, *, is_last: bool) -> None:
        """Write the averaged weights, their batch norms measured anew, with their score."""
        network = copy.deepcopy(self._average)
        batches = 100 if is_last else 30
        draws = (self._draw(1.0)[0] for _ in range(batches))
        average_batch_norms(network, draws, network.backbone)
        network.eval()
        card = self._card(elapsed, is_last)
        student = Student(card, network)
        scores = score(student, self._held_out)
        save_student(self._recipe.output, Student(replace(card, scores=scores), network))
        self._say(f"snapshot {elapsed / 60:.1f} min: {json.dumps(scores['held_out_worlds'])}")

    def _card(self, elapsed: float, is_last: bool) -> StudentCard:
        recipe = self._recipe
        training: dict[str, Any] = {
            "script": "benchmarks/base_student.py make",
            "encoder": f"ImageNet, {imagenet_encoder.PACKAGE} (PyPI), Apache-2.0",
            "real_frames": {
                folder.name: {"frames": len(views), "licence": licence_of(folder)}
                for folder, views in zip(recipe.frames, self._real, strict=True)
            },
            "real_share": recipe.real_share if self._real else 0.0,
            "canonical_focal_px": CANONICAL_FOCAL_PX,
            "world_seeds": [recipe.seeds[0], recipe.seeds[0] + self._pool.worlds - 1],
            "worlds": self._pool.worlds,
            "views": len(self._pool.views),
            "steps": self._step,
            "batches": [[size.height, size.width, batch] for size, batch in SIZES],
            "minutes": round(elapsed / 60, 1),
            "complete": is_last,
            "seed": recipe.seed,
            "peak_rate": recipe.rate,
            "encoder_rate": recipe.encoder_rate,
            "edge_focus": LOSS.edge_focus,
            "threads": torch.get_num_threads(),
        }
        return StudentCard(
            bins=BINS,
            input_size=SIZE,
            architecture=ARCHITECTURE,
            target=LOSS.target_width,
            focal_px=(CANONICAL_FOCAL_PX, CANONICAL_FOCAL_PX),
            version="base",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            status=StudentStatus.BASE,
            reason=(
                "a start for distillation; never live before a gate has passed what came of it: "
                "the base calibrated to the first labels of a place, or a student trained on them"
            ),
            teacher="exact depth of synthetic worlds, recorded depth of real frames",
            frames={"train": len(self._pool.views), "held_out": len(self._held_out)},
            training=training,
        )


def score(student: Student, held_out: list[Sample]) -> dict[str, Any]:
    """Return the scores on the held-out worlds, and those of the best constant depth."""
    found = mean_errors(student_predictor(TorchRuntime(student)), held_out, BINS)
    constant = mean_errors(constant_predictor(held_out, BINS), held_out, BINS)
    names = ("abs_rel", "rmse", "a1")
    return {
        "held_out_worlds": {n: round(getattr(found, n), 4) for n in names},
        "best_constant": {n: round(getattr(constant, n), 4) for n in names},
    }
