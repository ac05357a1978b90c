"""The registry with several writers at a time, some of whom die."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.children import start_python
from helpers.students import small_student
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry

ADD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers.students import small_student
from tiekd_ros.student.registry import StudentRegistry
registry, student = StudentRegistry(Path(sys.argv[1])), small_student(int(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(int(sys.argv[3])):
    print(registry.add(student).version, flush=True)
"""

PROMOTE = """
import sys
from pathlib import Path
from tiekd_ros.student.registry import LiveChangedError, StudentRegistry
registry = StudentRegistry(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
try:
    registry.promote(sys.argv[2], expected_live="000001")
    print("promoted")
except LiveChangedError:
    print("LiveChangedError")
"""


def start_writer(registry: StudentRegistry, seed: int, count: int) -> subprocess.Popen[str]:
    arguments = ["-c", ADD, str(registry.root), str(seed), str(count)]
    return start_python(*arguments, stdin=subprocess.PIPE)


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
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    folder, file, alive = (
        registry.root / f".writing-{pid}-{name}"
        for pid, name in ((done.pid, "aa"), (done.pid, "bb"), (os.getpid(), "cc"))
    )
    folder.mkdir()
    (folder / "student.safetensors").write_bytes(b"half")
    file.write_text("half")
    alive.mkdir()
    registry.clean()
    assert [path.exists() for path in (folder, file, alive)] == [False, False, True]
    assert registry.versions() == ["000001", "000002", "000003"]
