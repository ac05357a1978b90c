"""Confidence: how often depth is right, and little where the student has not learnt."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from helpers.frames import samples
from helpers.students import small_student
from tiekd_ros.method.confidence import (
    ConfidenceErrors,
    FrameSpread,
    calibrated,
    confidence_errors,
    confidences,
    fit_confidence,
    frame_spreads,
    relative_errors,
    remember_frames,
)
from tiekd_ros.method.samples import Sample
from tiekd_ros.student.checkpoint import (
    CheckpointError,
    ConfidenceScale,
    StudentCard,
    load_student,
    save_student,
)
from tiekd_ros.student.networks.efficientnet import Memory
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

LITE0 = "efficientnet-lite0"


def frames(seed: int, slope: float = 1.0, count: int = 8) -> list[FrameSpread]:
    """Return frames with normal errors: 1.5 times the spread, to the power of the slope."""
    rng = np.random.default_rng(seed)
    stds = np.exp(rng.normal(np.log(0.1), 0.7, (count, 500)))
    errors = 0.15 * (stds / 0.1) ** slope * np.abs(rng.normal(size=stds.shape))
    return [FrameSpread(s, e, novelty=0.5) for s, e in zip(stds, errors, strict=True)]


def of_others(scale: ConfidenceScale, others: list[FrameSpread]) -> ConfidenceErrors:
    return confidence_errors(confidences(scale, others), relative_errors(others), scale.tolerance)


def test_confidence_is_the_share_that_is_right_also_on_other_frames():
    scale, errors = calibrated(frames(0), tolerance=0.1)
    fresh = of_others(scale, frames(1))
    for found in (errors, fresh):
        assert found.mean == pytest.approx(found.right, abs=0.02)
        assert max(map(abs, found.gaps.values())) < 0.08
        assert found.ence < 0.1
        assert found.ause < 0.6 * found.ause_constant
    assert fresh.as_dict()["gap at 0.5"] == fresh.gaps[0.5]
    strict = fit_confidence(frames(0), tolerance=0.02)
    assert of_others(strict, frames(1)).mean < 0.2


def test_the_fit_converges_whatever_the_spreads():
    """Of a logistic regression, the mean of what it says is the share that is right."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        level, scatter = rng.uniform(0.01, 0.5), rng.uniform(0.05, 1.0)
        stds = np.exp(rng.normal(np.log(level), scatter, (4, 2000)))
        errors = rng.uniform(0.2, 3.0) * stds * np.abs(rng.normal(size=stds.shape))
        seen = [FrameSpread(s, e, 0.5) for s, e in zip(stds, errors, strict=True)]
        found = of_others(fit_confidence(seen, 0.1), seen)
        assert found.mean == pytest.approx(found.right, abs=2e-3), seed


def test_a_spread_that_misleads_is_not_believed():
    scale = fit_confidence(frames(0, slope=-1.0), tolerance=0.1)
    assert scale.slope == 0.0
    found = of_others(scale, frames(1, slope=-1.0))
    assert found.mean == pytest.approx(found.right, abs=0.03)
    assert calibrated(frames(0)[:1], tolerance=0.1) is None


def test_confidence_falls_where_more_is_new_than_was_known():
    scale = ConfidenceScale(0.1, offset=-4.0, slope=2.5, known_novelty=0.8)
    std = torch.full((4,), 0.05)
    known, edge, newer, new = scale.confidence(std, torch.tensor([0.0, 0.8, 1.0, 1.6])).tolist()
    assert known == edge == pytest.approx(1 / (1 + np.exp(4.0 + 2.5 * np.log(0.05))))
    assert known > newer > 40 * new > 0
    unknown = replace(scale, known_novelty=0.0)
    assert unknown.confidence(std, torch.tensor([9.0] * 4)).tolist() == [known] * 4


def test_a_student_knows_the_frames_it_remembers_and_says_less_of_others():
    seen, rng = samples(6), np.random.default_rng(0)
    noise = rng.integers(0, 255, seen[0].image.shape, dtype=np.uint8)
    other = Sample(noise, seen[0].depth)
    student = small_student(architecture=LITE0)
    network = student.network.eval()
    assert {f.novelty for f in frame_spreads(network, [*seen, other])} == {0.0}
    remember_frames(network, seen)
    *known, new = (f.novelty for f in frame_spreads(network, [*seen, other]))
    assert max(known) < 1e-3
    assert new > 0.2
    scale = ConfidenceScale(0.1, offset=0.0, slope=0.0, known_novelty=0.1)
    runtime = TorchRuntime(replace(student, card=replace(student.card, confidence=scale)))
    assert runtime.predict(seen[0].image).confidence == pytest.approx(0.5, abs=1e-6)
    assert runtime.predict(noise).confidence.max() < 0.01


def test_the_memory_takes_summaries_of_any_device():
    """A network that was trained on a GPU stays there; `meta` is a device, too."""
    memory = Memory(8).to("meta")
    memory.remember(torch.rand(5, 8))
    assert memory.centre.device.type == "meta"


def test_a_student_of_before_remembers_nothing_and_loads(tmp_path: Path):
    student = small_student(architecture=LITE0)
    save_student(tmp_path, student)
    weights = safetensors.torch.load_file(tmp_path / "student.safetensors")
    old = {name: value for name, value in weights.items() if not name.startswith("memory.")}
    assert len(old) == len(weights) - 3
    safetensors.torch.save_file(old, tmp_path / "student.safetensors")
    card = json.loads((tmp_path / "card.json").read_text())
    del card["confidence"]
    data = (tmp_path / "student.safetensors").read_bytes()
    card["weights_sha256"] = hashlib.sha256(data).hexdigest()
    (tmp_path / "card.json").write_text(json.dumps(card))
    loaded = load_student(tmp_path)
    assert loaded.card.confidence is None
    image = samples(1)[0].image
    one, other = (TorchRuntime(each).predict(image) for each in (student, loaded))
    assert np.array_equal(one.depth, other.depth)
    assert np.array_equal(one.confidence, other.confidence)


@pytest.mark.parametrize(
    "scale", [{"tolerance": 0.1}, {"tolerance": 0.1, "offset": 1, "slope": -1}]
)
def test_a_card_with_a_broken_scale_is_refused(scale):
    card = json.loads(small_student().card.to_json())
    card["confidence"] = scale
    with pytest.raises(CheckpointError, match="no valid student card"):
        StudentCard.from_json(json.dumps(card), "card.json")
