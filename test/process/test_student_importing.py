"""Published checkpoints come in exactly, as candidates, and the node can run them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.children import run_python
from helpers.official import (
    flat_state,
    hash_state,
    layout,
    needs_reference,
    published_shapes,
    shapes_of,
    written,
)
from helpers.students import small_student
from tiekd_ros.cli.__main__ import app
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.student.architecture import InputSize
from tiekd_ros.student.checkpoint import StudentStatus
from tiekd_ros.student.importing import import_student
from tiekd_ros.student.live import LiveStudent
from tiekd_ros.student.networks.official import KITTI_BINS, NYU_BINS
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.choosing import RuntimeFactory
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime

SMALL = InputSize(64, 96)
IMAGE = np.random.default_rng(0).integers(0, 256, (72, 96, 3), dtype=np.uint8)


@needs_reference
def test_a_checkpoint_of_the_published_keys_comes_in_exactly_and_stays_so(tmp_path):
    state = hash_state(published_shapes("resnet18"))
    path = written(tmp_path / "r18.pth", state)
    registry = StudentRegistry(tmp_path / "students")
    stored = registry.add(import_student(path, "resnet18", input_size=SMALL))
    student = registry.load(stored.version)
    loaded = student.network.state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(loaded[key], state[key]) for key in state)
    card = student.card
    assert (card.architecture, card.bins, card.input_size) == ("resnet18", KITTI_BINS, SMALL)
    assert (card.status, registry.live()) == (StudentStatus.CANDIDATE, None)
    assert "not judged yet" in card.reason
    origin = card.training["imported"]
    assert origin["file"] == "r18.pth"
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (origin["epoch"], origin["mmcv_version"]) == (24, "1.5.0")
    depth, confidence, _ = TorchRuntime(student).predict(IMAGE)
    assert depth.shape == confidence.shape == (72, 96)
    assert np.isfinite(depth).all()
    assert np.isfinite(confidence).all()


def test_bins_and_input_size_follow_from_the_file(tmp_path):
    for architecture, bins, size in (
        ("resnet18", KITTI_BINS, InputSize(352, 1216)),
        ("resnet18", NYU_BINS, InputSize(480, 640)),
        ("mobilenetv2", NYU_BINS, InputSize(480, 640)),
    ):
        path = written(tmp_path / "c.pth", flat_state(architecture, bins))
        card = import_student(path, architecture).card
        assert (card.bins, card.input_size) == (bins, size)


def test_other_ways_to_write_the_same_weights_are_understood(tmp_path):
    state, path = flat_state(), tmp_path / "c.pth"
    half = {k: v.half() if "tracked" not in k else v for k, v in state.items()}
    for content in (
        state,
        {"state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items())},
        {"state_dict": OrderedDict(half)},
    ):
        torch.save(content, path)
        network = import_student(path, "resnet18").network
        assert shapes_of(network) == layout("resnet18")
        assert network.classifier.weight.dtype == torch.float32


def test_a_regression_head_asks_for_its_range_and_keeps_its_unused_layer(tmp_path):
    path = written(tmp_path / "c.pth", flat_state("resnet18-regression"))
    with pytest.raises(InvalidSettingError, match=r"kitti \(80 m\), nyu \(10 m\)"):
        import_student(path, "resnet18-regression")
    student = import_student(path, "resnet18-regression", bins="nyu", input_size=SMALL)
    assert student.network.decode_head.conv_out[0].weight.shape[0] == 256
    depth, confidence, _ = TorchRuntime(student).predict(IMAGE)
    np.testing.assert_allclose(depth, 5.0)  # sigmoid(0) of 10 m
    assert np.isnan(confidence).all()  # not known


def test_a_running_fast_student_is_exchanged_for_an_imported_one_and_back(tmp_path):
    registry = StudentRegistry(tmp_path / "students")
    registry.add(small_student())
    path = written(tmp_path / "c.pth", flat_state())
    registry.add(import_student(path, "resnet18", input_size=SMALL))
    registry.promote("000001")
    changed = threading.Semaphore(0)
    live = LiveStudent(
        registry, RuntimeFactory(torch.device("cpu")), lambda state: changed.release()
    )
    live.load_pointer()
    architectures = []
    for version in ("000002", "000001"):
        registry.promote(version)
        live.request(version)
        assert changed.acquire(timeout=60)
        assert (live.state.version, live.state.error) == (version, "")
        architectures.append(live.runtime.card.architecture)
        assert live.runtime.predict(IMAGE).depth.shape == (72, 96)
    live.close()
    assert architectures == ["resnet18", "mobilenetv2-fast"]


def command(*arguments: object):
    return run_python("-m", "tiekd_ros.cli", "students", *map(str, arguments))


def test_the_command_imports_a_candidate_and_makes_it_live_only_when_told(tmp_path):
    path, state = written(tmp_path / "r18.pth", flat_state()), tmp_path / "state"
    asked = ["import", path, "--arch", "resnet18", "--input-size", "64x96", "--state", state]
    done = command(*asked)
    assert done.returncode == 0, done.stderr
    assert "student 000001 is resnet18 with 257 bins up to 80 m, input 64x96" in done.stdout
    assert "not live; tiekd students promote 000001 makes it live" in done.stdout
    registry = StudentRegistry(state / "students")
    assert registry.live() is None
    assert registry.card("000001").status == StudentStatus.CANDIDATE
    told = CliRunner().invoke(app, ["students", *map(str, asked), "--promote"])
    assert told.exit_code == 0, told.output
    assert "000002 is live, as you asked; no gate has judged it" in told.output
    assert registry.live() == "000002"


def test_a_mistake_in_the_command_ends_with_one_line_and_leaves_no_trace(tmp_path):
    (tmp_path / "c.pth").write_bytes(b"junk")
    asked = ["import", str(tmp_path / "c.pth"), "--arch", "resnet18"]
    done = command(*asked, "--state", tmp_path / "state")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "no torch zip archive" in line
    assert not (tmp_path / "state").exists()
    for size, message in (("big", "HEIGHTxWIDTH like 352x1216, got 'big'"), ("100x96", "96 would")):
        with pytest.raises(InvalidSettingError, match=message):
            CliRunner().invoke(
                app, ["students", *asked, "--input-size", size], catch_exceptions=False
            )
