"""Killed processes, damaged files, held locks, full disks: real ones."""

import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from tiekd_ros.frames import (
    FrameLogSettings,
    FrameStore,
    FrameStoreError,
    Observation,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
)
from tiekd_ros.images import decode_depth_png, decode_image

S = 1_000_000_000
EAGER = FrameLogSettings(min_interval_s=0.0, guard_share=0.0, lock_timeout_s=0.2)
DEPTH = np.ones((60, 80), np.float32)

CHILD = """
import sys
from pathlib import Path
import numpy as np
from tiekd_ros.frames import FrameLogSettings, FrameStore, Observation
path, seed, count, megabytes = Path(sys.argv[1]), *map(int, sys.argv[2:])
settings = FrameLogSettings(
    min_interval_s=0.0, guard_share=0.0, max_bytes_mb=megabytes, lock_timeout_s=10.0
)
rng = np.random.default_rng(seed)
depth = rng.uniform(1, 9, (60, 80)).astype(np.float32)
store = FrameStore(path, settings)
for k in range(count):
    image = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8).repeat(5, 0).repeat(5, 1)
    frame_id = store.add(Observation(image, k * 10**8, "cam")).frame_id
    print("added", frame_id, flush=True)
    store.put_label(frame_id, depth, "teacher", str(seed))
    print("labelled", frame_id, flush=True)
"""


def view(seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return pixels.repeat(5, 0).repeat(5, 1)


def add(store: FrameStore, seed: int) -> int | None:
    return store.add(Observation(view(seed), seed * S, "cam")).frame_id


def start_child(path: Path, seed: int, count: int, megabytes: int = 100) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(seed), str(count), str(megabytes)],
        stdout=subprocess.PIPE,
        text=True,
    )


def check_whole(path: Path) -> dict[int, bool]:
    """Return which stored ids have a label, after checking that each row is whole."""
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        rows = connection.execute(
            "SELECT id, state, jpeg, depth FROM frames "
            "LEFT JOIN images ON images.frame_id = id LEFT JOIN labels ON labels.frame_id = id"
        ).fetchall()
    for _, state, jpeg, depth in rows:
        assert decode_image(jpeg).shape == (120, 160, 3)
        assert (state == "labelled") == (depth is not None)
        assert depth is None or decode_depth_png(depth).shape == (60, 80)
    return {frame_id: depth is not None for frame_id, _, _, depth in rows}


@contextmanager
def held_by_another_program(path: Path) -> Iterator[None]:
    code = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield
    finally:
        process.communicate("")


def test_a_killed_process_leaves_whole_frames_and_all_that_it_said_were_stored(
    tmp_path: Path,
) -> None:
    path = tmp_path / "frames.sqlite3"
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


def test_a_process_killed_while_it_evicts_leaves_whole_frames_too(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    for run in range(3):
        child = start_child(path, run, 100_000, megabytes=1)
        time.sleep(0.8 + 0.1 * run)
        child.kill()
        child.communicate()
        check_whole(path)
    with FrameStore(path, FrameLogSettings(max_bytes_mb=1)) as store:
        assert store.stats().bytes <= 1_000_000


def test_two_processes_log_into_one_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"  # made by whichever is faster
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


def test_frames_of_another_process_count_for_novelty_and_eviction(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as one, FrameStore(path, EAGER) as other:
        assert add(one, 1) == 1
        assert add(other, 1) is None
        assert add(other, 2) == 2
        assert add(one, 2) is None
        one.put_label(2, DEPTH, "t", "1")
        assert other.labelled_ids() == [2]


def test_a_training_process_reads_while_this_one_writes(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        add(store, 0)
        child = start_child(path, 1, 30)
        while child.poll() is None:
            ids = store.labelled_ids()
            for frame_id in ids[-3:]:
                assert store.load(frame_id).image.shape == (120, 160, 3)
            store.mark_used(ids, 1)
        child.communicate()
        assert len(store.labelled_ids()) == 30


@pytest.mark.parametrize("read_only", [False, True])
def test_garbage_is_refused_and_left_as_it_is(tmp_path: Path, read_only: bool) -> None:
    path = tmp_path / "frames.sqlite3"
    garbage = np.random.default_rng(0).bytes(50_000)
    path.write_bytes(garbage)
    with pytest.raises(StoreCorruptError, match="move it away"):
        FrameStore(path, read_only=read_only)
    assert path.read_bytes() == garbage
    assert [p.name for p in tmp_path.iterdir()] == ["frames.sqlite3"]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused_and_left_as_it_is(tmp_path: Path, share: float) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        for k in range(20):
            add(store, k)
    whole = path.read_bytes()
    cut = whole[: int(share * len(whole))]
    path.write_bytes(cut)
    with pytest.raises(StoreCorruptError, match="Nothing in it was changed"):
        FrameStore(path)
    assert path.read_bytes() == cut


def test_a_damaged_page_is_reported_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        for k in range(20):
            add(store, k)
            store.put_label(k + 1, DEPTH, "t", "1")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    damaged = path.read_bytes()
    with FrameStore(path, EAGER) as store:
        for call in (
            store.stats,
            store.labelled_ids,
            lambda: store.load(3),
            lambda: add(store, 99),
        ):
            with pytest.raises(StoreCorruptError):
                call()
    assert path.read_bytes() == damaged


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreCorruptError, match="another program's"):
        FrameStore(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    FrameStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreVersionError, match="schema is 99"):
        FrameStore(path)


def test_a_held_lock_is_reported_soon_and_logging_goes_on_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        assert add(store, 0) == 1
        with held_by_another_program(path):
            with pytest.raises(StoreLockedError, match="held by another program"):
                add(store, 1)
            with pytest.raises(StoreLockedError):
                store.put_label(1, DEPTH, "t", "1")
            assert store.stats().total == 1  # readers wait for nobody
        assert add(store, 1) == 2
        store.put_label(1, DEPTH, "t", "1")
        assert add(store, 1) is None


def test_a_full_disk_is_reported_loses_nothing_and_logging_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        for k in range(5):
            add(store, k)
        with store._db.write() as connection:  # a limit on pages stands in for the disk
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
        writer = store._db._writer
        assert writer is not None
        writer.execute(f"PRAGMA max_page_count = {pages}")
        for _ in range(2):
            with pytest.raises(StoreFullError, match="nothing that was stored is lost"):
                add(store, 50)
        noise = np.random.default_rng(0).uniform(1, 9, (200, 200)).astype(np.float32)
        with pytest.raises(StoreFullError):
            store.put_label(1, noise, "t", "1")
        assert [frame.id for frame in store.unlabelled(9)] == [1, 2, 3, 4, 5]

        writer.execute("PRAGMA max_page_count = 1000000")
        assert add(store, 51) == 6  # takes the id that was rolled back, with another view
        assert add(store, 50) == 7
        assert add(store, 51) is None
        store.put_label(1, DEPTH, "t", "1")
    assert set(check_whole(path)) == {1, 2, 3, 4, 5, 6, 7}


def test_a_file_that_was_moved_away_gets_no_more_frames(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        add(store, 0)
        path.rename(tmp_path / "kept.sqlite3")
        with pytest.raises(FrameStoreError, match="moved or deleted"):
            add(store, 1)
