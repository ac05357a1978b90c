"""Students on disk: exact when whole, refused with file and fault when not."""

import dataclasses
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from helpers.students import small_student
from tiekd_ros.student.checkpoint import CheckpointError, TargetWidth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

IMAGE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)


@pytest.fixture
def registry(tmp_path) -> StudentRegistry:
    """A registry with a live version 1 and a version 2 for a test to spoil."""
    registry = StudentRegistry(tmp_path / "students")
    registry.add(small_student(1))
    registry.add(small_student(2))
    registry.promote("000001")
    return registry


def spoil_weights(folder: Path, change) -> None:
    """Change the tensors and make the card's hash match, as a foreign program would."""
    weights, card = folder / "student.safetensors", folder / "card.json"
    state = safetensors.torch.load_file(weights)
    change(state)
    data = safetensors.torch.save(state)
    weights.write_bytes(data)
    spoil_card(card, weights_sha256=hashlib.sha256(data).hexdigest())


def spoil_card(path: Path, **values) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def refusal(registry: StudentRegistry) -> str:
    """Return why version 2 is refused, after checking that the pointer stays."""
    with pytest.raises(CheckpointError) as loading:
        registry.load("000002")
    with pytest.raises(CheckpointError):
        registry.promote("000002", force=True)
    assert registry.live() == "000001"
    assert registry.history() == []
    assert "000002" in str(loading.value)
    return str(loading.value)


def test_a_student_comes_back_with_its_card_and_identical_depth(tmp_path):
    registry = StudentRegistry(tmp_path)
    student = small_student(
        3, focal_px=(60.5, 61.0), target=TargetWidth(0.1, 0.02), frames={"train": 7}, round=4
    )
    stored = registry.add(student)
    loaded = registry.load(stored.version)
    assert loaded.card == stored
    assert dataclasses.replace(stored, version="", created="", weights_sha256="") == student.card
    before, after = TorchRuntime(student), TorchRuntime(loaded)
    np.testing.assert_array_equal(before.predict(IMAGE).depth, after.predict(IMAGE).depth)
    np.testing.assert_array_equal(before.predict(IMAGE).confidence, after.predict(IMAGE).confidence)


def test_weights_that_are_not_those_of_the_card_are_refused(registry):
    path = registry.root / "000002" / "student.safetensors"
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    for wrong in (data[:-100], flipped):
        path.write_bytes(wrong)
        message = refusal(registry)
        assert "student.safetensors" in message
        assert "not the file its card describes: it is truncated or was changed" in message
    path.unlink()
    assert "cannot read" in refusal(registry)
    path.write_bytes(b"junk" * 100)
    spoil_card(
        path.with_name("card.json"), weights_sha256=hashlib.sha256(b"junk" * 100).hexdigest()
    )
    assert "no safetensors file" in refusal(registry)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda s: s["head.weight"][0, 0].fill_(math.nan), "weight head.weight has values that"),
        (lambda s: s["head.weight"][0, 0].fill_(math.inf), "weight head.weight has values that"),
        (lambda s: s.pop("head.bias"), "does not fit its architecture: 1 missing (first: head.b"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unknown (first: extra)"),
        (
            lambda s: s.update({"head.bias": torch.zeros(5)}),
            "1 misshapen (first: head.bias (5,) instead of (33,))",
        ),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_are_refused_by_name(registry, change, fault):
    spoil_weights(registry.root / "000002", change)
    assert fault in refusal(registry)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"architecture": "resnet9000"}, "holds a 'resnet9000' student; this program runs effic"),
        ({"architecture": "resnet18"}, "missing (first: backbone.bn1.bias"),
        ({"format": 2}, "card format 2, this program reads 1"),
        ({"format": None}, "card format None"),
        ({"bins": {"count": -1}}, "count must be between 2 and 4096, got -1"),
        ({"bins": 33}, "no valid student card"),
        ({"target": {"floor_m": "wide"}}, "no valid student card"),
        ({"target": {"floor_m": -1.0}}, "no valid student card"),
        ({"version": 2}, "version must be str, got 2"),
        ({"scores": None}, "scores must be dict, got None"),
        ({"frames": [1]}, "frames must be dict, got [1]"),
        ({"focal_px": [60.0]}, "no valid student card"),
        ({"input_size": {"height": 65, "width": 96}}, "height must be a multiple of 32"),
        ({"surprise": 1}, "no valid student card"),
    ],
)
def test_a_card_that_cannot_be_right_is_refused(registry, values, fault):
    spoil_card(registry.root / "000002" / "card.json", **values)
    assert fault in refusal(registry)


def test_a_card_that_is_no_card_is_refused(registry):
    for data in (b"", b"{", b"[1, 2]", b'"card"', b'{"format": 1}', b"\x00\x01", b"\xff\xfe\x00"):
        (registry.root / "000002" / "card.json").write_bytes(data)
        assert "card.json" in refusal(registry)


def test_only_a_student_whose_weights_are_finite_is_stored(registry):
    student = small_student(3)
    with torch.no_grad():
        student.network.head.weight.fill_(3e38)  # their sum is infinite
    stored = registry.add(student).version
    assert registry.load(stored).network.head.weight.max() > 2e38
    with torch.no_grad():
        student.network.head.weight[0, 0] = math.nan
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        registry.add(student)
    assert registry.versions() == ["000001", "000002", stored]
    assert list(registry.root.glob(".writing-*")) == []


def test_students_that_are_loaded_twice_share_nothing_that_can_be_changed(registry):
    one, other = (registry.load("000002").network for _ in range(2))
    kept = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    one.train()
    one(torch.randn(2, 3, 64, 96)).square().mean().backward()  # changes the norms' statistics
    assert all(parameter.grad is not None for parameter in one.parameters())
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(1)
    one.head.register_forward_hook(lambda module, given, out: out + 1)
    one.neck.bn = torch.nn.Identity()
    assert not any(module.training for module in other.modules())
    assert list(other.state_dict()) == list(kept)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in other.state_dict().items())
    again = registry.load("000002").network
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(again(images), other(images))
