"""The base student's training on random views of random worlds, one file a world.

Whenever it is stopped, its last snapshot is usable.
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
import numpy as np
import numpy.typing as npt
import torch
from random_world import HELD_OUT_SEEDS_FROM, TRAINING_SEEDS_FROM, RandomisedWorld
from torch import Tensor

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.method.comparison import constant_predictor, mean_errors, student_predictor
from tiekd_ros.method.losses import DistillationLoss, LossSettings
from tiekd_ros.method.samples import AugmentSettings, Sample, augment, cell_depth, fit_sample
from tiekd_ros.method.stepping import BadSteps, Stepper, average_batch_norms
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student, StudentCard, StudentStatus, save_student
from tiekd_ros.student.networks import build_network
from tiekd_ros.student.networks.mobilenetv2 import FastStudent
from tiekd_ros.student.preprocessing import normalise
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime, to_channels_last

CANONICAL_FOCAL_PX = 160.0
BINS = DepthBins(count=257, min_depth_m=0.1, max_depth_m=12.0)
SIZE = InputSize(height=160, width=224)
SIZES = ((InputSize(height=96, width=128), 12), (SIZE, 4), (InputSize(height=224, width=320), 2))
"""Input sizes with the images of a step: a step costs about the same time at each."""
FIRST_SHARES, LAST_SHARES = (0.7, 0.25, 0.05), (0.15, 0.55, 0.3)
"""How often each size is drawn at the start and at the end: small pictures teach much early."""
AUGMENT = AugmentSettings(flip=0.5, zoom=1.25, brightness=0.2, gamma=0.2, colour=0.1)
LOSS = LossSettings()

HELD_OUT_SEEDS, HELD_OUT_VIEWS = range(HELD_OUT_SEEDS_FROM, HELD_OUT_SEEDS_FROM + 12), 8
FEWEST_WORLDS = 12  # training starts when so many are there
WARM_UP = 0.04
AVERAGE = 0.998  # of the weights, a step: about the last 500 steps
SNAPSHOT_EVERY_S = 300.0
CLIP_NORM = 10.0


WIDTH, HEIGHT = 320, 224


@dataclass(frozen=True)
class StoredView:
    """Image uint8 (224, 320, 3), depth float16 (224, 320) in metres, intrinsics."""

    image: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.float16]
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


@dataclass(frozen=True)
class Recipe:
    """The settings of one run."""

    minutes: float
    worlds: int
    views: int
    seed: int
    output: Path
    cache: Path
    rate: float = 4e-3
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
        card = StudentCard(bins=BINS, input_size=SIZE, target=LOSS.target_width)
        self._network = build_network(card.architecture, BINS)
        to_channels_last(self._network)
        self._average = copy.deepcopy(self._network)
        objective = DistillationLoss(BINS, LOSS)
        optimizer = torch.optim.AdamW(
            self._network.parameters(), lr=recipe.rate, weight_decay=recipe.weight_decay
        )
        self._stepper = Stepper(
            self._network,
            optimizer,
            lambda raw, depth: objective(self._network.output(raw), depth),
            clip_norm=CLIP_NORM,
            frozen=False,
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
        chosen = self._rng.integers(len(self._pool.views), size=batch)
        views = [self._pool.views[i].canonical(size) for i in chosen]
        samples = [augment(view, AUGMENT, self._rng) for view in views]
        images = torch.from_numpy(np.stack([s.image for s in samples]))
        depth = torch.from_numpy(np.stack([s.depth for s in samples]))
        return normalise(images), cell_depth(depth[:, None], FastStudent.output_scale)

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
        average_batch_norms(network, (self._draw(1.0)[0] for _ in range(batches)))
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
            "threads": torch.get_num_threads(),
        }
        return StudentCard(
            bins=BINS,
            input_size=SIZE,
            target=LOSS.target_width,
            focal_px=(CANONICAL_FOCAL_PX, CANONICAL_FOCAL_PX),
            version="base",
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            status=StudentStatus.BASE,
            reason=(
                "a start for distillation, trained on synthetic rooms; no depth model for the "
                "real world, and never live before a round's gate has passed what came of it"
            ),
            teacher="exact depth of synthetic worlds",
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
