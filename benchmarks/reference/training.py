"""Checks of the learning rate, the augmentation, and one training step of an official network.

A step with batch norms in training mode over few pixels is ill-conditioned: the reference, which
is float32, is up to 3 mm and 0.2 % of a gradient away from what float64 gives, and another
number of threads moves it as far. So the step runs with as many threads as the reference had,
and again in float64 and in float32 with one thread; what these tell of float32's noise widens a
tolerance where it must.

The file's config names data set and objective (a Res-KD student has a regression head). Bins,
optimiser, clipping, learning rate and the step itself are what `tiekd train --recipe paper-kitti`
or `paper-nyu` takes. Only the order of values in memory is the reference's, not the training's
channels last: it moves float32's rounding.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from reference.checks import EXACT, LOSS, Fixture, FixtureError, Tolerance
from reference.networks import encoder_of, hash_input, load_hash_weights
from tiekd_ros.method.first_student import first_bins
from tiekd_ros.method.losses import DPM_OBJECTIVES
from tiekd_ros.method.paper.losses import RESPONSE_LOSSES
from tiekd_ros.method.paper.pipeline import Augmentation, Draws, augment
from tiekd_ros.method.samples import cell_depth
from tiekd_ros.student.architecture import StudentNetwork
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks import build_network
from tiekd_ros.training.loop import make_optimizer, make_stepper
from tiekd_ros.training.recipes import Recipe, TrainingPlan, get_recipe

_RATE = Tolerance(1e-9)
_REFERENCE_OPENCV = "5.0."  # whose rotation the files hold, pixel for pixel

# Of one training step.
_DEPTH_SHARE = 2.5e-5  # of the range
_NORM = 1e-3  # relative
_BUFFER = 1e-4  # relative
_NEGLIGIBLE = 1e-5  # of the total gradient: zero up to rounding, not comparable
_NOISE_FACTOR = 4.0
_REFERENCE_THREADS = 2
_STEPS = 100  # of a training; the first step's learning rate is 4e-5 in any
_OTHER_WEIGHT_CONFIG, _OTHER_WEIGHT = "TIE-KD_bts_r50_KITTI", 1.5  # all others have 0.1
_WITHIN = Tolerance(1.0, "of limit")


def check_one_cycle(fixture: Fixture) -> None:
    """Check a file of learning rates per iteration."""
    iterations = int(fixture.number("total_iters"))
    recipe = get_recipe("paper-kitti")
    peak = recipe.plan.train.learning_rate
    max_lr = fixture.number("max_lr") if "max_lr" in fixture else peak
    rates = [recipe.rate(step, iterations, max_lr) for step in range(iterations)]
    fixture.compare("lr", rates, _RATE)


def check_pipeline(fixture: Fixture) -> None:
    """Check a file of augmented samples."""
    sizes = {name: tuple(fixture.take(name).tolist()) for name in ("kb_size", "crop_size")}
    numbers = replace(get_recipe("paper-kitti").augmentation, **sizes)
    if len(fixture.take("draw_names")) != len(Draws._fields):
        raise FixtureError(f"expected {len(Draws._fields)} draws per sample")
    samples = sorted(int(key) for key in fixture.keys("in_img_bgr_") if key.isdecimal())
    if not samples:
        raise FixtureError("there is no sample in_img_bgr_0")
    for sample in samples:
        _check_sample(fixture, numbers, sample)


def _check_sample(fixture: Fixture, numbers: Augmentation, sample: int) -> None:
    image = np.ascontiguousarray(fixture.take(f"in_img_bgr_{sample}")[:, :, ::-1])
    rng = np.random.RandomState(int(fixture.number(f"seed_{sample}")))
    view = augment(
        image, fixture.take(f"in_depth_{sample}"), fixture.take(f"in_kd_{sample}"), numbers, rng
    )
    fixture.compare(f"draws_{sample}", np.array(view.draws), Tolerance(1e-12))
    rotated = view.draws.rotate < numbers.rotate_share
    if rotated and not cv2.__version__.startswith(_REFERENCE_OPENCV):
        # Another OpenCV may round a grey level or a nearest pixel differently.
        grey_level = 1.74 * 1.1**2 / 57.12  # at the strongest change of colour
        note = f"OpenCV {cv2.__version__}, reference {_REFERENCE_OPENCV}*"
        fixture.compare(f"out_img_{sample}", view.image, Tolerance(grey_level, "grey level"), note)
        different = np.mean(fixture.take(f"out_depth_{sample}") != view.truth)
        label = f"out_depth_{sample}: pixels that differ"
        fixture.compare_values(label, different, 0.0, Tolerance(0.01, "share"), note)
    else:
        fixture.compare(f"out_img_{sample}", view.image, Tolerance(1e-5))
        fixture.compare(f"out_depth_{sample}", view.truth, EXACT)
    teacher = None if view.teacher is None else view.teacher[None]
    fixture.compare(f"out_kd_{sample}", teacher, EXACT)


class _Step(NamedTuple):
    """What one step gives; all float64 arrays, in the order of the file's names."""

    depth: np.ndarray  # (B, 1, H, W), metres
    loss: np.ndarray
    norms: np.ndarray  # L2 of every parameter's gradient, NaN = none
    total_norm: np.ndarray
    deltas: np.ndarray  # L2 of every parameter's change
    buffer_means: np.ndarray  # of every batch norm's running mean and variance
    buffer_norms: np.ndarray


def objective_of(config: str) -> str:
    """Return the objective of a published config, by its name.

    Args:
        config: such as TIE-KD_adabins_KITTI or Res-KD_depthformer_SSIM_SI_r18_KITTI; "" = TIE-KD.

    Raises:
        FixtureError: the name tells no objective.
    """
    method, *words = re.split(r"[_+.]", config.upper())
    if method == "BASELINE":
        return "si"
    if method in ("TIE-KD", ""):
        part = re.search(r"_L_(DPM|DEPTH)(_|$)", config.upper())
        return f"paper-{part[1].lower()}" if part else "paper"
    objective = "+".join(term for term in ("ssim", "si", "mse") if term.upper() in words)
    if method != "RES-KD" or objective not in RESPONSE_LOSSES:
        raise FixtureError(f"the config {config!r} is no published one of TIE-KD, Res-KD, baseline")
    return objective


class _Task(NamedTuple):
    """What to do, and the names of what is compared."""

    recipe: Recipe
    plan: TrainingPlan
    names: list[str]
    buffers: list[str]
    out_gain: float
    image: torch.Tensor  # (B, 3, H, W)
    depth: torch.Tensor  # (B, 1, H, W)

    @classmethod
    def of(cls, fixture: Fixture) -> _Task:
        depth = fixture.take("kd_gt")
        config = fixture.text("config") if "config" in fixture else ""
        room = get_recipe("paper-nyu")
        in_room = "NYU" in config if config else depth.max() <= room.plan.student.max_depth_m
        recipe = room if in_room else get_recipe("paper-kitti")
        names = [str(name) for name in fixture.take("param_names")]
        objective = objective_of(config)
        head = "" if objective in DPM_OBJECTIVES else "-regression"
        loss: dict[str, Any] = {"objective": objective}
        if "loss_weight" in fixture:
            loss["paper_weight"] = fixture.number("loss_weight")
        elif config.startswith(_OTHER_WEIGHT_CONFIG):
            loss["paper_weight"] = _OTHER_WEIGHT
        changes = {"student": {"architecture": encoder_of(names) + head}, "loss": loss}
        shape = tuple(int(n) for n in fixture.take("input_shape"))
        return cls(
            recipe,
            recipe.plan_for(changes, baseline=config.startswith("baseline")),
            names,
            [str(name) for name in fixture.take("bn_buffer_names")],
            fixture.number("out_gain"),
            hash_input(fixture.text("input_key"), shape),
            torch.from_numpy(depth),
        )

    @property
    def bins(self) -> DepthBins:
        """The student's."""
        return first_bins([self.depth.numpy()], self.plan.student)

    def network(self) -> StudentNetwork:
        """Return the network before the step."""
        network = build_network(self.plan.student.architecture, self.bins)
        load_hash_weights(network, self.out_gain)
        return network

    def run(self, dtype: torch.dtype) -> _Step:
        """Do the step.

        Raises:
            FixtureError: it is skipped, because loss or gradient is not finite.
        """
        network = self.network().to(dtype)
        parameters = dict(network.named_parameters())
        before = {name: p.detach().double().clone() for name, p in parameters.items()}
        outputs: list[torch.Tensor] = []
        norms: dict[str, float] = {}  # before clipping
        network.register_forward_hook(lambda _network, _inputs, raw: outputs.append(raw.detach()))
        for name, parameter in parameters.items():
            parameter.register_post_accumulate_grad_hook(
                lambda own, name=name: norms.update({name: _norm(own.grad)})
            )
        stepper = make_stepper(network, make_optimizer(network, self.plan.train), self.plan)
        rate = self.recipe.rate(0, _STEPS, self.plan.train.learning_rate)
        depth = cell_depth(self.depth.to(dtype), network.output_scale)
        step = stepper.step(self.image.to(dtype), depth, rate)
        if step is None:
            raise FixtureError("loss or gradient is not finite: no step was done")
        changes = {n: _norm(p.detach().double() - before[n]) for n, p in parameters.items()}
        held = {name: value.detach().double() for name, value in network.named_buffers()}
        buffers = [held.get(name, torch.tensor([torch.nan])) for name in self.buffers]
        return _Step(
            network.output(outputs[-1]).depth.double().numpy(),
            np.array(step.parts.total.item()),
            np.array([norms.get(name, np.nan) for name in self.names]),
            np.array(float(step.gradient_norm)),
            np.array([changes.get(name, np.nan) for name in self.names]),
            np.array([float(value.mean()) for value in buffers]),
            np.array([_norm(value) for value in buffers]),
        )


def _norm(values: torch.Tensor) -> float:
    return float(values.double().norm())


def check_train_step(fixture: Fixture) -> None:
    """Check a file of one training step."""
    task = _Task.of(fixture)
    _check_names(fixture, task)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(_REFERENCE_THREADS)
        step = task.run(torch.float32)
        torch.set_num_threads(1)
        exact, other = task.run(torch.float64), task.run(torch.float32)
    finally:
        torch.set_num_threads(threads)
    noise = _Step(
        *(
            _NOISE_FACTOR * np.maximum(np.abs(a - e), np.abs(o - e))
            for a, o, e in zip(step, other, exact, strict=True)
        )
    )
    metres = max(_DEPTH_SHARE * task.bins.max_depth_m, float(noise.depth.max()))
    fixture.compare("depth_pred", step.depth, Tolerance(metres, "m"))
    fixture.compare("loss", step.loss, LOSS)
    norm = max(_NORM, float(noise.total_norm / exact.total_norm))
    fixture.compare("total_grad_norm_before_clip", step.total_norm, Tolerance(norm))
    _check_parameters(fixture, step, noise)
    _check_buffers(fixture, task, step, noise)


def _check_names(fixture: Fixture, task: _Task) -> None:
    """Check that the file speaks of all parameters and batch norms, and in their order."""
    network = task.network()
    ours = [name for name, _ in network.named_parameters()]
    fixture.compare_values("param_names", ours, task.names, EXACT)
    ours = [n for n, _ in network.named_buffers() if n.endswith((".running_mean", ".running_var"))]
    fixture.compare_values("bn_buffer_names", ours, task.buffers, EXACT)


def _check_parameters(fixture: Fixture, step: _Step, noise: _Step) -> None:
    """Compare per parameter, relative to each one's own size, where it is not mere rounding."""
    reference = fixture.take("grad_norms")
    without = np.isnan(reference)
    fixture.compare_values("grad_norms: which have none", np.isnan(step.norms), without, EXACT)
    counts = ~without & (reference > _NEGLIGIBLE * float(step.total_norm))
    note = f"{int((~counts & ~without).sum())} of {counts.size} are zero up to rounding"
    limits = np.maximum(_NORM * reference, noise.norms)[counts]
    a, b = step.norms[counts] / limits, reference[counts] / limits
    fixture.compare_values("grad_norms", a, b, _WITHIN, note)
    moved = fixture.take("delta_norms_after_adamw_lr4e5")
    counts |= without  # without a gradient nothing may move
    limits = np.maximum(_NORM * moved, noise.deltas)[counts]
    limits[limits == 0] = np.finfo(np.float64).tiny
    a, b = step.deltas[counts] / limits, moved[counts] / limits
    fixture.compare_values("delta_norms_after_adamw_lr4e5", a, b, _WITHIN, note)


def _check_buffers(fixture: Fixture, task: _Task, step: _Step, noise: _Step) -> None:
    """Compare the batch norms' statistics; a mean relative to the size of one element."""
    sizes = {name: value.numel() for name, value in task.network().named_buffers()}
    elements = np.array([sizes.get(name, 1) for name in task.buffers])
    means, norms = fixture.take("bn_buffer_mean"), fixture.take("bn_buffer_norm")
    limits = np.maximum(_BUFFER * norms / np.sqrt(elements), noise.buffer_means)
    fixture.compare_values("bn_buffer_mean", step.buffer_means / limits, means / limits, _WITHIN)
    limits = np.maximum(_BUFFER * norms, noise.buffer_norms)
    fixture.compare_values("bn_buffer_norm", step.buffer_norms / limits, norms / limits, _WITHIN)
