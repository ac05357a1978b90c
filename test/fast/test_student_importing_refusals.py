"""What is no published checkpoint is refused by name, and nothing in it ever runs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.official import META, flat_state, written
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.checkpoint import CheckpointError
from tiekd_ros.student.importing import import_student


def refusal(path: Path, architecture: str = "resnet18", **options) -> str:
    with pytest.raises(CheckpointError) as refused:
        import_student(path, architecture, **options)
    assert path.name in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        (lambda s: s.pop("backbone.bn1.weight"), ["1 missing (first: backbone.bn1.weight)"]),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("backbone.layer4")],
            ["30 missing (first: backbone.layer4.0.bn1.bias, backbone.layer4.0.bn1."],
        ),
        (
            lambda s: s.update({"decode_head.extra.weight": torch.zeros(1)}),
            ["1 unknown (first: decode_head.extra.weight)"],
        ),
        (
            lambda s: s.update({"backbone.bn1.bias": torch.zeros(5)}),
            ["1 misshapen (first: backbone.bn1.bias (5,) instead of (64,))", "nearest is resnet18"],
        ),
        (lambda s: s.clear() or s.update({"fc.weight": torch.zeros(3)}), ["no published student"]),
    ],
    ids=["missing", "layer", "extra", "misshapen", "foreign"],
)
def test_weights_that_do_not_fit_are_named(tmp_path, change, faults):
    state = flat_state()
    change(state)
    message = refusal(written(tmp_path / "c.pth", state))
    assert "does not fit resnet18 with 257 bins" in message
    for fault in faults:
        assert fault in message


@pytest.mark.parametrize(
    ("made", "asked", "options", "hint"),
    [
        ("resnet18", "mobilenetv2", {}, "it fits resnet18 with bins kitti"),
        ("resnet18", "resnet50", {}, "it fits resnet18 with bins kitti"),
        ("resnet18", "resnet18", {"bins": "nyu"}, "it fits resnet18 with bins kitti"),
        ("resnet18", "resnet18-regression", {"bins": "kitti"}, "it fits resnet18 with bins kitti"),
        ("mobilenetv2-regression", "mobilenetv2", {}, "it fits mobilenetv2-regression"),
    ],
)
def test_a_wrong_architecture_is_refused_with_the_one_that_fits(
    tmp_path, made, asked, options, hint
):
    assert hint in refusal(written(tmp_path / "c.pth", flat_state(made)), asked, **options)


def test_weights_that_are_not_finite_or_give_no_number_are_refused(tmp_path):
    state = flat_state()
    for bad in (float("nan"), float("inf")):
        state["backbone.bn1.bias"] = torch.full((64,), bad)
        message = refusal(written(tmp_path / "c.pth", state))
        assert "weight backbone.bn1.bias has values that are not finite" in message
    state = flat_state()
    state["backbone.bn1.running_var"] = torch.full((64,), -1.0)  # its root is no number
    with pytest.raises(CheckpointError, match="answers a probe image"):
        import_student(written(tmp_path / "c.pth", state), "resnet18")


class Malicious:
    """Makes a file when it is loaded by an ordinary unpickler."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "c.pth"
    malicious = Malicious(trap)
    for content in (
        {"meta": {"hook_msgs": malicious}, "state_dict": flat_state()},
        {"meta": META, "state_dict": {**flat_state(), "backbone.bn1.bias": malicious}},
        malicious,
    ):
        torch.save(content, path)
        assert "mkdir" in refusal(path)
        assert not trap.exists()
    path.write_bytes(pickle.dumps({"state_dict": malicious}))
    assert "no torch zip archive" in refusal(path)
    assert not trap.exists()
    torch.save(malicious, path)
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap is a real one
    assert "pathlib" in refusal(written(path, flat_state(), meta={"when": Path("/tmp")}))


def test_bytes_that_are_no_whole_archive_of_torch_are_refused(tmp_path):
    state = flat_state()
    state["backbone.conv1.weight"] = torch.ones(64, 3, 7, 7)
    path = written(tmp_path / "c.pth", state)
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[data.index(torch.ones(64).numpy().tobytes()) + 100] ^= 1
    for spoilt, fault in (
        (b"", "(0 bytes) is no torch zip archive"),
        (data[:-100], "no torch zip archive: it is empty, truncated"),
        (data[: len(data) // 2], "no torch zip archive"),
        (b"weights" * 100, "no torch zip archive"),
        (flipped, "is damaged"),
    ):
        path.write_bytes(spoilt)
        assert fault in refusal(path)
    np.savez(path.open("wb"), a=np.zeros(3))
    assert "no torch checkpoint" in refusal(path)


def test_content_without_weights_is_refused_with_what_was_expected(tmp_path):
    path = tmp_path / "c.pth"
    numbers = {"state_dict": {"a": 1}}
    for content in ({}, {"state_dict": {}}, [1, 2], numbers, {"meta": META}, torch.zeros(3)):
        torch.save(content, path)
        assert "{'state_dict': tensors by name}" in refusal(path)
    assert "No such file" in refusal(tmp_path / "gone.pth")
    assert "gone" not in refusal(tmp_path)  # a folder


def test_only_published_architectures_and_bins_are_imported(tmp_path):
    for name in ("mobilenetv2-fast", "resnet34", ""):
        with pytest.raises(InvalidSettingError, match="one of mobilenetv2, resnet18, resnet50, m"):
            import_student(tmp_path / "c.pth", name)
    with pytest.raises(InvalidSettingError, match="one of kitti, nyu, got 'cityscapes'"):
        import_student(tmp_path / "c.pth", "resnet18", bins="cityscapes")
