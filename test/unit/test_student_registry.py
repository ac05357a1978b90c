"""The registry: numbers, the pointer, and several writers, some of whom die."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from helpers.children import child_environment, start_python
from helpers.students import small_student
from tiekd_ros.student import REFUSED, CheckpointError, StudentRegistry

ADD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers.students import small_student
from tiekd_ros.student import StudentRegistry
registry, student = StudentRegistry(Path(sys.argv[1])), small_student(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    print(registry.add(student).version, flush=True)
"""


@pytest.fixture(scope="module")
def student():
    return small_student()


@pytest.fixture
def registry(tmp_path, student) -> StudentRegistry:
    """A registry with three versions, none live."""
    registry = StudentRegistry(tmp_path / "students")
    for _ in range(3):
        registry.add(student)
    return registry


def start_writer(registry: StudentRegistry, seed: int, count: int) -> subprocess.Popen[str]:
    arguments = ["-c", ADD, str(registry.root), str(seed), str(count)]
    return start_python(*arguments, stdin=subprocess.PIPE)


def test_versions_are_numbered_from_one(registry):
    assert registry.versions() == ["000001", "000002", "000003"]
    assert registry.card("000002").version == "000002"
    assert registry.live() is None


def test_a_folder_that_does_not_exist_has_no_versions(tmp_path):
    registry = StudentRegistry(tmp_path / "nowhere")
    assert registry.versions() == []
    assert registry.live() is None
    registry.clean()


def test_promoting_moves_the_pointer_and_keeps_the_history(registry):
    for version in ("000001", "000003", "000003", "000002"):
        registry.promote(version)
    assert registry.live() == "000002"
    assert registry.history() == ["000001", "000003"]


def test_rolling_back_goes_back_step_by_step_and_then_says_that_it_cannot(registry):
    for version in ("000001", "000003", "000002"):
        registry.promote(version)
    assert registry.rollback() == "000003"
    assert registry.rollback() == "000001"
    assert registry.live() == "000001"
    with pytest.raises(CheckpointError, match="no earlier version"):
        registry.rollback()
    assert registry.live() == "000001"


def test_rolling_back_to_a_version_that_is_gone_leaves_the_pointer(registry):
    registry.promote("000001")
    registry.promote("000002")
    (registry.root / "000001" / "student.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="000001"):
        registry.rollback()
    assert registry.live() == "000002"


def test_a_refused_version_goes_live_only_by_force(registry):
    registry.judge("000002", REFUSED, "worse than before", {})
    with pytest.raises(CheckpointError, match=r"refused by .*\(worse than before\).*--force"):
        registry.promote("000002")
    assert registry.live() is None
    registry.promote("000002", force=True)
    assert registry.live() == "000002"


@pytest.mark.parametrize("version", ["000009", "9", "", "../000001", "newest"])
def test_an_unknown_version_is_refused_with_the_known_ones(registry, version):
    with pytest.raises(CheckpointError, match="versions: 000001, 000002, 000003"):
        registry.promote(version)
    assert registry.live() is None


@pytest.mark.parametrize("text", ["", "{", "{}", "[]", '{"live": "000001"}', '{"history": []}'])
def test_a_damaged_pointer_says_what_to_do(registry, text):
    (registry.root / "live.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"live.json is damaged.*remove it and promote"):
        registry.live()


def test_a_judgement_is_kept_in_the_card_and_the_weights_stay(registry):
    registry.judge("000002", REFUSED, "no better", {"rmse": 1.0})
    card = registry.load("000002").card
    assert (card.status, card.reason, card.scores) == (REFUSED, "no better", {"rmse": 1.0})


def test_writers_at_the_same_time_get_numbers_of_their_own(tmp_path):
    registry = StudentRegistry(tmp_path / "students")
    writers = [start_writer(registry, seed, count=4) for seed in range(3)]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    numbers = [line.strip() for w in writers for line in w.communicate(timeout=60)[0].splitlines()]
    assert sorted(numbers) == [f"{n:06d}" for n in range(1, 13)]
    assert registry.versions() == sorted(numbers)
    for version in numbers:
        registry.load(version)
    assert sorted(p.name for p in registry.root.iterdir()) == sorted(numbers)


def test_a_writer_killed_in_mid_write_leaves_whole_versions_only(tmp_path):
    registry, rng = StudentRegistry(tmp_path / "students"), random.Random(0)
    announced = []
    for seed in range(3):
        writer = start_writer(registry, seed, count=10_000)
        writer.stdout.readline()
        writer.stdin.write("go\n")
        writer.stdin.flush()
        announced.append(writer.stdout.readline().strip())
        time.sleep(rng.uniform(0.0, 0.15))
        writer.send_signal(signal.SIGKILL)
        announced += writer.communicate(timeout=60)[0].split()
    versions = registry.versions()
    assert set(announced) <= set(versions)
    for version in versions:
        assert registry.load(version).card.version == version
    registry.clean()
    assert sorted(p.name for p in registry.root.iterdir()) == versions
    following = f"{int(versions[-1]) + 1:06d}"
    assert registry.add(small_student()).version == following


def test_cleaning_removes_the_leftovers_of_dead_writers_only(registry):
    done = subprocess.Popen([sys.executable, "-c", ""], env=child_environment())
    done.wait()
    dead_folder = registry.root / f".writing-{done.pid}-aa"
    dead_folder.mkdir()
    (dead_folder / "student.safetensors").write_bytes(b"half")
    dead_file = registry.root / f".writing-{done.pid}-bb"
    dead_file.write_text("half")
    alive = registry.root / f".writing-{os.getpid()}-cc"
    alive.mkdir()
    registry.clean()
    assert not dead_folder.exists()
    assert not dead_file.exists()
    assert alive.exists()
    assert registry.versions() == ["000001", "000002", "000003"]
