"""The registry: numbers, the pointer, and several writers, some of whom die."""

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from helpers.children import child_environment, start_python
from helpers.students import small_student
from tiekd_ros.student import (
    REFUSED,
    ROLLED_BACK,
    CheckpointError,
    LiveChangedError,
    StudentRegistry,
)
from tiekd_ros.student import registry as registry_module

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

PROMOTE = """
import sys
from pathlib import Path
from tiekd_ros.student import LiveChangedError, StudentRegistry
registry = StudentRegistry(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    registry.promote(sys.argv[2], expected_live="000001")
    print("promoted")
except LiveChangedError:
    print("LiveChangedError")
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


@pytest.mark.parametrize(
    ("promoted", "said"),
    [
        (["000001"], "live is 000001 after none"),
        (["000001", "000003"], "live is 000003 after 000001"),
        (["000001", "000003", "000002"], "live is 000002 after 000003"),
    ],
)
def test_rolling_back_from_another_student_than_expected_is_refused(registry, promoted, said):
    for version in promoted:
        registry.promote(version)
    before = registry.history()
    with pytest.raises(LiveChangedError, match=f"{said} and not 000002 after 000001 any more"):
        registry.rollback(expected=("000002", "000001"))
    assert (registry.live(), registry.history()) == (promoted[-1], before)


def test_rolling_back_from_the_expected_student_works(registry):
    for version in ("000003", "000001", "000002"):
        registry.promote(version)
    assert registry.rollback(expected=("000002", "000001")) == "000001"
    assert (registry.live(), registry.history()) == ("000001", ["000003"])


def test_a_mark_changes_status_and_reason_alone_and_keeps_nobody_from_promoting(registry):
    before = registry.card("000002")
    registry.mark("000002", ROLLED_BACK, "worse where the robot is now")
    card = registry.load("000002").card
    assert (card.status, card.reason) == ("rolled back", "worse where the robot is now")
    assert replace(card, status=before.status, reason=before.reason) == before
    registry.promote("000002")
    assert registry.live() == "000002"
    with pytest.raises(CheckpointError, match="there is no student '000009'"):
        registry.mark("000009", ROLLED_BACK, "")


def test_rolling_back_to_a_version_that_is_gone_leaves_the_pointer(registry):
    registry.promote("000001")
    registry.promote("000002")
    (registry.root / "000001" / "student.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="000001"):
        registry.rollback()
    assert registry.live() == "000002"


def test_a_refused_version_goes_live_only_by_force(registry):
    registry.add(small_student(status=REFUSED, reason="worse than before"))
    with pytest.raises(CheckpointError, match=r"refused by .*\(worse than before\).*--force"):
        registry.promote("000004")
    assert registry.live() is None
    registry.promote("000004", force=True)
    assert registry.live() == "000004"


def test_a_base_student_goes_live_only_by_force(registry):
    registry.add(small_student(5, status="base"))
    newest = registry.versions()[-1]
    with pytest.raises(CheckpointError, match=r"start for training.*--force"):
        registry.promote(newest)
    registry.promote(newest, force=True)
    assert registry.live() == newest


@pytest.mark.parametrize("expected", ["000002", None])
def test_a_promotion_over_another_student_than_expected_is_refused(registry, expected):
    registry.promote("000001")
    with pytest.raises(LiveChangedError, match=f"from {expected or 'none'} to 000001 meanwhile"):
        registry.promote("000003", expected_live=expected)
    assert (registry.live(), registry.history()) == ("000001", [])


def test_a_promotion_over_the_expected_student_works(registry):
    registry.promote("000001", expected_live=None)
    registry.promote("000003", expected_live="000001")
    registry.promote("000003", expected_live="000001")  # is live already: said again after a crash
    assert (registry.live(), registry.history()) == ("000003", ["000001"])


def test_promotions_at_the_same_time_lose_none_of_them(tmp_path):
    registry = StudentRegistry(tmp_path / "students")
    versions = [registry.add(small_student(seed)).version for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(registry.promote, versions))
    assert sorted([*registry.history(), registry.live()]) == versions


def test_only_one_of_several_promotions_over_the_same_student_succeeds(registry):
    registry.promote("000001")
    processes = [
        start_python("-c", PROMOTE, str(registry.root), version, stdin=subprocess.PIPE)
        for version in ("000002", "000003")
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n", timeout=60)[0].strip() for process in processes]
    assert sorted(said) == ["LiveChangedError", "promoted"]
    assert registry.history() == ["000001"]


def test_promoting_waits_for_a_rollback_that_is_under_way(registry, monkeypatch):
    registry.promote("000001")
    registry.promote("000002")
    loading, go_on, load = threading.Event(), threading.Event(), registry.load

    def slow_load(version):
        loading.set()
        assert go_on.wait(30)
        return load(version)

    monkeypatch.setattr(registry, "load", slow_load)
    with ThreadPoolExecutor(2) as pool:
        back = pool.submit(registry.rollback)
        assert loading.wait(30)
        other = StudentRegistry(registry.root)
        promotion = pool.submit(other.promote, "000003", expected_live="000002")
        time.sleep(0.2)
        assert not promotion.done()
        go_on.set()
        assert back.result(30) == "000001"
        with pytest.raises(LiveChangedError):
            promotion.result(30)
    assert registry.live() == "000001"


def test_a_version_is_on_the_disk_before_it_has_its_name(registry, student, monkeypatch):
    synced, sync = [], registry_module._sync_folder

    def note(folder):
        synced.append((folder.name.partition("-")[0], registry.versions()[-1]))
        sync(folder)

    monkeypatch.setattr(registry_module, "_sync_folder", note)
    registry.add(student)
    assert synced == [(".writing", "000003"), ("students", "000004")]


def test_a_disk_that_refuses_to_sync_a_folder_is_told_and_nothing_is_left(
    registry, student, monkeypatch
):
    def refuse(folder):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(registry_module, "_sync_folder", refuse)
    with pytest.raises(CheckpointError, match=r"cannot write to .*Input/output error"):
        registry.add(student)
    assert [p.name for p in registry.root.iterdir() if p.name.startswith(".writing")] == []
    assert registry.versions() == ["000001", "000002", "000003"]


def test_a_registry_that_cannot_be_locked_says_so(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot change what is live in .*No such file"):
        StudentRegistry(tmp_path / "nowhere").rollback()


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
