"""Several processes on one frame log, and what is left of those that are killed."""

import dataclasses
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from helpers.stores import DEPTH, EAGER, add, check_whole, start_child
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Label


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames.sqlite3"


def test_a_killed_process_leaves_whole_frames_and_all_that_it_said_were_stored(path: Path) -> None:
    chance = random.Random(7)
    promised: dict[str, set[int]] = {"added": set(), "labelled": set()}
    for run in range(5):
        child = start_child(path, run, 100_000)
        assert child.stdout is not None
        said = child.stdout.readline()  # it has begun
        time.sleep(chance.uniform(0.02, 0.3))
        child.send_signal(signal.SIGKILL)
        said += child.communicate()[0]
        for line in said[: said.rfind("\n") + 1].splitlines():
            what, frame_id = line.split()
            promised[what].add(int(frame_id))
    stored = check_whole(path)
    assert len(promised["labelled"]) > 5
    assert promised["added"] <= set(stored)
    assert all(stored[frame_id] for frame_id in promised["labelled"])
    with FrameStore(path, EAGER) as store:
        assert add(store, 12345) is not None


def test_a_process_killed_while_it_evicts_leaves_whole_frames_too(path: Path) -> None:
    for run in range(3):
        child = start_child(path, run, 100_000, megabytes=1)
        assert child.stdout.readline()  # it has begun
        time.sleep(0.8 + 0.1 * run)
        child.kill()
        child.communicate()
        check_whole(path)
    with FrameStore(path, FrameLogSettings(max_bytes_mb=1)) as store:
        assert store.stats().bytes <= 1_000_000


def test_two_processes_log_into_one_file_at_once(path: Path) -> None:  # made by whichever is faster
    children = [start_child(path, seed, 40) for seed in (1, 2)]
    outputs = [child.communicate()[0] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    ids = [line.split()[1] for output in outputs for line in output.splitlines()]
    assert len(set(ids)) == 80
    stored = check_whole(path)
    assert len(stored) == 80
    assert all(stored.values())


def test_many_programs_make_the_same_new_file_at_once(tmp_path: Path) -> None:
    settings = FrameLogSettings(lock_timeout_s=10.0)
    for attempt in range(15):
        path = tmp_path / f"{attempt}.sqlite3"
        start = threading.Barrier(4)

        def open_it(path: Path = path, start: threading.Barrier = start) -> None:
            start.wait()
            FrameStore(path, settings).close()

        with ThreadPoolExecutor(4) as pool:
            for opened in [pool.submit(open_it) for _ in range(4)]:
                opened.result()


def test_frames_of_another_process_count_for_novelty_and_eviction(path: Path) -> None:
    with FrameStore(path, EAGER) as one, FrameStore(path, EAGER) as other:
        assert add(one, 1) == 1
        assert add(other, 1) is None
        assert add(other, 2) == 2
        assert add(one, 2) is None
        one.put_label(2, Label(DEPTH, "t", "1"))
        assert other.labelled_ids() == [2]


def test_a_training_process_reads_while_this_one_writes(path: Path) -> None:
    with FrameStore(path, dataclasses.replace(EAGER, lock_timeout_s=10.0)) as store:
        add(store, 0)
        child = start_child(path, 1, 30)
        while child.poll() is None:
            ids = store.labelled_ids()
            for frame_id in ids[-3:]:
                assert store.load(frame_id).image.shape == (120, 160, 3)
            store.mark_round_finished(ids, 1)
        child.communicate()
        assert len(store.labelled_ids()) == 30
