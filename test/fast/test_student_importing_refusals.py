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


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, bad):
    state = flat_state()
    state["backbone.bn1.bias"] = torch.full((64,), bad)
    message = refusal(written(tmp_path / "c.pth", state))
    assert "weight backbone.bn1.bias has values that are not finite" in message


def test_finite_weights_that_give_no_number_are_refused(tmp_path):
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


@pytest.mark.parametrize("place", ["meta", "state_dict", "root"])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(tmp_path, place):
    trap, path = tmp_path / "trap", tmp_path / "c.pth"
    content = {"meta": META, "state_dict": flat_state()}
    if place == "meta":
        content["meta"] = {"hook_msgs": Malicious(trap)}
    elif place == "state_dict":
        content["state_dict"]["backbone.bn1.bias"] = Malicious(trap)
    else:
        content = Malicious(trap)
    torch.save(content, path)
    assert "mkdir" in refusal(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap is a real one


def test_a_plain_pickle_is_refused_and_nothing_runs(tmp_path):
    trap, path = tmp_path / "trap", tmp_path / "c.pth"
    path.write_bytes(pickle.dumps({"state_dict": Malicious(trap)}))
    assert "no torch zip archive" in refusal(path)
    assert not trap.exists()


def test_an_object_of_a_foreign_class_is_refused_by_its_name(tmp_path):
    path = written(tmp_path / "c.pth", flat_state(), meta={"when": Path("/tmp")})
    assert "pathlib" in refusal(path)


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda data: b"", "(0 bytes) is no torch zip archive"),
        (lambda data: data[:-100], "no torch zip archive: it is empty, truncated"),
        (lambda data: data[: len(data) // 2], "no torch zip archive"),
        (lambda data: b"weights" * 100, "no torch zip archive"),
    ],
    ids=["empty", "end", "half", "text"],
)
def test_bytes_that_are_no_whole_archive_are_refused(tmp_path, spoil, fault):
    path = written(tmp_path / "c.pth", flat_state())
    path.write_bytes(spoil(path.read_bytes()))
    assert fault in refusal(path)


def test_one_flipped_bit_in_the_weights_is_noticed(tmp_path):
    state = flat_state()
    state["backbone.conv1.weight"] = torch.ones(64, 3, 7, 7)
    path = written(tmp_path / "c.pth", state)
    data = bytearray(path.read_bytes())
    data[data.index(torch.ones(64).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(data)
    assert "is damaged" in refusal(path)


def test_a_zip_that_is_no_torch_archive_is_refused(tmp_path):
    path = tmp_path / "c.pth"
    np.savez(path.open("wb"), a=np.zeros(3))
    assert "no torch checkpoint" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": {}}, [1, 2], {"state_dict": {"a": 1}}, {"meta": META}, torch.zeros(3)],
    ids=["empty", "empty-state", "list", "numbers", "meta", "tensor"],
)
def test_content_without_weights_is_refused_with_what_was_expected(tmp_path, content):
    path = tmp_path / "c.pth"
    torch.save(content, path)
    assert "{'state_dict': tensors by name}" in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "gone.pth")
    assert "gone" not in refusal(tmp_path)


@pytest.mark.parametrize("name", ["mobilenetv2-fast", "resnet34", ""])
def test_only_published_architectures_are_imported(tmp_path, name):
    with pytest.raises(InvalidSettingError, match="one of mobilenetv2, resnet18, resnet50, mobile"):
        import_student(tmp_path / "c.pth", name)


def test_bins_that_nobody_published_are_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="one of kitti, nyu, got 'cityscapes'"):
        import_student(tmp_path / "c.pth", "resnet18", bins="cityscapes")
