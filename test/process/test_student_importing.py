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
    MISSING,
    REFERENCE,
    flat_state,
    hash_state,
    layout,
    published_shapes,
    shapes_of,
    written,
)
from helpers.students import small_student
from tiekd_ros.cli.main import app
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


@pytest.mark.skipif(not REFERENCE.is_dir(), reason=MISSING)
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
    assert "judged by nobody" in card.reason
    origin = card.training["imported"]
    assert origin["file"] == "r18.pth"
    assert origin["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (origin["epoch"], origin["exp_name"]) == (24, "TIE-KD_adabins_r18_KITTI.py")
    depth, confidence, _ = TorchRuntime(student).predict(IMAGE)
    assert depth.shape == confidence.shape == (72, 96)
    assert np.isfinite(depth).all()
    assert np.isfinite(confidence).all()


@pytest.mark.parametrize(
    ("architecture", "bins", "size"),
    [
        ("resnet18", KITTI_BINS, InputSize(352, 1216)),
        ("resnet18", NYU_BINS, InputSize(480, 640)),
        ("mobilenetv2", NYU_BINS, InputSize(480, 640)),
    ],
)
def test_bins_and_input_size_follow_from_the_file(tmp_path, architecture, bins, size):
    path = written(tmp_path / "c.pth", flat_state(architecture, bins))
    card = import_student(path, architecture).card
    assert (card.bins, card.input_size) == (bins, size)


@pytest.mark.parametrize("wrap", ["bare", "module", "half"])
def test_other_ways_to_write_the_same_weights_are_understood(tmp_path, wrap):
    state = flat_state()
    if wrap == "module":
        state = OrderedDict((f"module.{key}", value) for key, value in state.items())
    if wrap == "half":
        state = OrderedDict((k, v.half() if "tracked" not in k else v) for k, v in state.items())
    path = tmp_path / "c.pth"
    torch.save(state if wrap == "bare" else {"state_dict": state}, path)
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


def test_the_command_imports_a_candidate_that_is_not_live(tmp_path):
    path = written(tmp_path / "r18.pth", flat_state())
    state = tmp_path / "state"
    done = command("import", path, "--arch", "resnet18", "--input-size", "64x96", "--state", state)
    assert done.returncode == 0, done.stderr
    assert "student 000001 is resnet18 with 257 bins up to 80 m, input 64x96" in done.stdout
    assert "not live; tiekd students promote 000001 makes it live" in done.stdout
    assert StudentRegistry(state / "students").live() is None
    assert StudentRegistry(state / "students").card("000001").status == StudentStatus.CANDIDATE


def test_the_command_makes_an_import_live_only_when_told(tmp_path):
    path = written(tmp_path / "r18.pth", flat_state())
    options = ["--arch", "resnet18", "--state", str(tmp_path / "state"), "--promote"]
    done = CliRunner().invoke(app, ["students", "import", str(path), *options])
    assert done.exit_code == 0, done.output
    assert "000001 is live, as you asked; no gate has judged it" in done.output
    assert StudentRegistry(tmp_path / "state" / "students").live() == "000001"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--input-size", "big"], "HEIGHTxWIDTH like 352x1216, got 'big'"),
        ([], "no torch zip archive"),
    ],
)
def test_a_mistake_in_the_command_ends_with_one_line_and_leaves_no_trace(
    tmp_path, options, message
):
    (tmp_path / "c.pth").write_bytes(b"junk")
    state = tmp_path / "state"
    done = command("import", tmp_path / "c.pth", "--arch", "resnet18", *options, "--state", state)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not state.exists()


@pytest.mark.parametrize(("size", "message"), [("100x96", "100; 96 would do"), ("9", "HEIGHTx")])
def test_an_input_size_that_cannot_be_is_refused(tmp_path, size, message):
    arguments = ["students", "import", "c.pth", "--arch", "resnet18", "--input-size", size]
    with pytest.raises(InvalidSettingError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
