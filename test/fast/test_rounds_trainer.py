"""The trainer: it learns, it keeps to its budget, and a bad step changes nothing."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from helpers.frames import samples
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.method.losses import LossSettings, make_objective
from tiekd_ros.method.samples import AugmentSettings, Sample
from tiekd_ros.method.stepping import Stepper, TrainingError, make_optimizer
from tiekd_ros.rounds.trainer import Trainer, TrainSettings
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.networks.mobilenetv2 import FastStudent
from tiekd_ros.student.preprocessing import normalise

BINS = DepthBins(count=33)
STILL = AugmentSettings(flip=0.0, zoom=1.0, brightness=0.0, gamma=0.0, colour=0.0)


def network(seed: int = 0) -> FastStudent:
    torch.manual_seed(seed)
    return FastStudent(BINS)


def small(count: int = 2) -> list[Sample]:
    """Return samples of 64x64 pixels."""
    return [Sample(s.image[:, :64].copy(), s.depth[:, :64].copy()) for s in samples(count)]


def trainer_for(
    student: FastStudent, data: list[Sample], *, has_parent: bool = False, **settings
) -> Trainer:
    defaults = {"iterations": 3, "batch_size": 2, "learning_rate": 2e-3, "threads": 1}
    return Trainer(
        student,
        data,
        TrainSettings(device="cpu", **{**defaults, **settings}),
        loss=LossSettings(),
        augmentation=STILL,
        has_parent=has_parent,
    )


def state_of(student: FastStudent) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in student.state_dict().items()}


def changed(student: FastStudent, before: dict[str, torch.Tensor]) -> set[str]:
    """Return the parts of a network, by their first name, in which something changed."""
    after = student.state_dict()
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


def ignore(progress):
    pass


def test_two_samples_are_learnt_by_heart():
    student, seen = network(), []
    result = trainer_for(student, small(), iterations=40).run(seen.append)
    assert (result.steps, result.skipped) == (40, 0)
    assert result.last_loss < 0.75 * result.first_loss
    assert not student.training  # ready to be judged
    assert [p.step for p in seen] == list(range(1, 41))
    assert {p.steps for p in seen} == {40}
    for p in seen:
        assert p.loss == pytest.approx(p.kl + 1 - p.ssim, rel=1e-4)
        assert p.seconds > 0


def test_the_first_answer_is_the_distribution_of_the_labels():
    student, data = network(), small()
    data[1].depth[:] = 2.0
    data[0].depth[:] = 2.0
    trainer_for(student, data)
    probability = student.head.bias.softmax(0)
    nearest = int((BINS.centres() - 2.0).abs().argmin())
    assert int(probability.argmax()) == nearest
    assert probability[nearest] > 0.9
    trained = network()
    before = trained.head.bias.detach().clone()
    trainer_for(trained, data, has_parent=True)
    assert torch.equal(trained.head.bias, before)
    with pytest.raises(TrainingError, match="no frame"):
        trainer_for(network(), [])


def test_a_label_that_alone_disagrees_is_left_out_and_a_new_place_is_not():
    student, honest = network(), [small(1)[0]] * 12
    trainer_for(student, honest, iterations=40).run(ignore)
    lie = dataclasses.replace(honest[0], depth=honest[0].depth * 2)
    lies = [*honest[:5], lie, *honest[6:]]
    for data, factor, expected in (
        (lies, 1.5, 1),
        (lies, 0.0, 0),
        ([*honest, *[lie] * 12], 1.5, 0),  # all of a stretch: the place is new
    ):
        trainer = trainer_for(
            copy.deepcopy(student), data, has_parent=True, iterations=2, outlier_factor=factor
        )
        assert trainer.run(ignore).outliers == expected
    with pytest.raises(InvalidSettingError, match="above 1, or 0"):
        TrainSettings(outlier_factor=0.9)


@pytest.mark.parametrize("poison", ["loss", "gradient"])
def test_steps_that_are_not_finite_change_nothing_and_end_the_training_after_five(poison):
    student = network()
    trainer = trainer_for(student, small(), iterations=100, batch_norm="frozen")
    if poison == "loss":
        with torch.no_grad():
            student.head.weight[3] = math.inf
    else:
        student.head.bias.register_hook(lambda gradient: gradient * math.inf)
    before, seen = state_of(student), []
    with pytest.raises(TrainingError, match=r"5 steps in a row \(step 5\); lower learning_rate"):
        trainer.run(seen.append)
    assert seen == []
    assert not changed(student, before)


def test_a_single_bad_step_is_skipped_and_the_training_goes_on():
    student = network()
    trainer = trainer_for(student, small(), iterations=6, batch_norm="frozen")
    states, calls = [], []

    def spoil_third(gradient):
        calls.append(1)
        states.append(state_of(student))
        return gradient * math.nan if len(calls) == 3 else gradient

    student.head.bias.register_hook(spoil_third)
    result = trainer.run(ignore)
    assert (result.steps, result.skipped) == (6, 1)
    differ = [
        any(not torch.equal(one[name], two[name]) for name in one)
        for one, two in itertools.pairwise(states)
    ]
    assert differ == [True, True, False, True, True]  # of the third step nothing
    assert all(torch.isfinite(v).all() for v in student.state_dict().values())


@pytest.mark.parametrize("poison", ["image", "gradient"])
def test_a_skipped_step_leaves_batch_norms_as_they_were(poison):
    student = network()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    objective = make_objective(BINS, LossSettings())
    stepper = Stepper(
        student, optimizer, lambda raw, d: objective(student.output(raw), d),
        clip_norm=10.0, frozen=None,
    )  # fmt: skip
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    depth = torch.full((2, 1, 16, 16), 2.0)
    assert stepper.step(images, depth, 1e-3) is not None
    before = state_of(student)
    if poison == "image":
        images[0, 0, 0, 0] = math.nan
    else:
        student.head.bias.register_hook(lambda gradient: gradient * math.inf)
    assert stepper.step(images, depth, 1e-3) is None
    assert not changed(student, before)


def test_samples_without_any_known_depth_change_only_by_weight_decay():
    student, data = network(), small()
    for sample in data:
        sample.depth[:] = np.nan
    trainer = trainer_for(student, data, weight_decay=0.0, batch_norm="frozen", iterations=2)
    before = state_of(student)
    trainer.run(ignore)
    assert not changed(student, before)


def test_the_seconds_end_the_training():
    result = trainer_for(network(), small(), iterations=10**6, seconds=0.5).run(ignore)
    assert 0.5 <= result.seconds < 10.0
    assert 0 < result.steps < 10**4


class Clock:
    """Stands in for the module `time`: goes on only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        self.now += seconds
        return seconds


def test_pauses_count_neither_as_training_time_nor_in_the_schedule(monkeypatch):
    clock, seen = Clock(), []
    monkeypatch.setattr("tiekd_ros.rounds.trainer.time", clock)

    def second_passes(progress):
        seen.append(progress)
        clock.advance(1.0)

    trainer = trainer_for(network(), small(), iterations=1000, seconds=5.0)
    result = trainer.run(second_passes, pause=lambda: clock.advance(60.0))
    assert [p.seconds for p in seen] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert seen[2].steps == pytest.approx(3 / (2 / 5), abs=1)  # two seconds of five are over
    assert result.seconds == pytest.approx(6.0)


def test_without_pauses_the_same_is_trained_as_with_them():
    students = [network(), network()]
    for student, pause in zip(students, (lambda: 0.0, lambda: 1e-3), strict=True):
        trainer_for(student, small(), iterations=2).run(ignore, pause)
    assert not changed(students[0], state_of(students[1]))


def test_the_optimiser_is_adamw_with_all_parameters_in_one_go_or_not():
    students = [network(), network()]
    ours = make_optimizer(students[0], 1e-3, 0.01)
    plain = torch.optim.AdamW(students[1].parameters(), lr=1e-3, weight_decay=0.01)
    for student, optimizer in zip(students, (ours, plain), strict=True):
        torch.manual_seed(1)
        for _ in range(3):
            for parameter in student.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
    for one, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def norms_of(student: FastStudent) -> list[nn.BatchNorm2d]:
    return [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]


def test_batch_norms_keep_their_statistics_where_they_are_to():
    for settings, kept in (
        ({"has_parent": True, "batch_norm": "frozen"}, ("backbone.", "neck.", "refine.")),
        ({"has_parent": True}, ("backbone.",)),  # an encoder that was trained before
        ({"has_parent": False}, ()),
    ):
        student = network()
        for norm in norms_of(student):
            norm.running_mean.normal_()
        before = state_of(student)
        trainer_for(student, small(), **settings).run(ignore)
        after = state_of(student)
        for part in ("backbone.", "neck.", "refine."):
            means = [n for n in before if n.startswith(part) and n.endswith("running_mean")]
            assert {torch.equal(before[n], after[n]) for n in means} == {part in kept}
        assert changed(student, before)


def test_averaged_statistics_are_those_of_the_training_frames():
    student, data = network(), small(8)
    trainer_for(student, data, iterations=2).run(ignore)
    # In train mode a forward over the same frames must find the same again.
    copied = copy.deepcopy(student)
    for other in norms_of(copied):
        other.reset_running_stats()
        other.momentum = None
    copied.train()
    with torch.no_grad():
        copied(normalise(torch.from_numpy(np.stack([s.image for s in data]))))
    for one, other in zip(norms_of(student), norms_of(copied), strict=True):
        assert one.momentum == 0.1
        # The frames come in another order: float32 noise, grown over fifty norms.
        torch.testing.assert_close(one.running_mean, other.running_mean, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(one.running_var, other.running_var, rtol=1e-3, atol=1e-3)


def test_the_same_seed_gives_the_same_student():
    students = [network() for _ in range(3)]
    for student, seed in zip(students, (5, 5, 6), strict=True):
        trainer_for(student, small(8), seed=seed).run(ignore)
    assert not changed(students[0], state_of(students[1]))
    assert changed(students[0], state_of(students[2]))
