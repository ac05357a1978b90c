"""Damaged files, held locks, full disks: real ones."""

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from helpers.stores import DEPTH, EAGER, add, check_whole
from tiekd_ros.framelog import (
    FrameStore,
    FrameStoreError,
    Label,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    StoreVersionError,
)


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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames.sqlite3"


def test_what_is_no_whole_frame_log_is_refused_and_left_as_it_is(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        for k in range(20):
            add(store, k)
    whole = path.read_bytes()
    garbage = np.random.default_rng(0).bytes(50_000)
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
        connection.commit()
    for content, message in (
        (path.read_bytes(), "another program's"),
        (garbage, "not a database"),
        *(
            (whole[: int(share * len(whole))], "cannot be read as a frame log")
            for share in (0.1, 0.5, 0.99)
        ),
    ):
        path.write_bytes(content)
        for read_only in (False, True):
            with pytest.raises(StoreCorruptError, match=message) as refused:
                FrameStore(path, read_only=read_only)
            assert "Nothing in it was changed: move it away" in str(refused.value)
        assert path.read_bytes() == content
        if content == garbage:
            assert list(path.parent.iterdir()) == [path]


def test_a_damaged_page_is_reported_when_it_is_read(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        for k in range(20):
            add(store, k)
            store.put_label(k + 1, Label(DEPTH, "t", "1"))
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    damaged = path.read_bytes()
    with FrameStore(path, EAGER) as store:
        calls = (store.stats, store.labelled_ids, lambda: store.load(3), lambda: add(store, 99))
        for call in calls:
            with pytest.raises(StoreCorruptError):
                call()
    assert path.read_bytes() == damaged


def test_a_newer_schema_is_left_alone(path: Path) -> None:
    FrameStore(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreVersionError, match="schema is 99"):
        FrameStore(path)


def test_a_held_lock_is_reported_soon_and_logging_goes_on_afterwards(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        assert add(store, 0) == 1
        with held_by_another_program(path):
            with pytest.raises(StoreLockedError, match="held by another program"):
                add(store, 1)
            with pytest.raises(StoreLockedError):
                store.put_label(1, Label(DEPTH, "t", "1"))
            assert store.stats().total == 1  # readers never wait
        assert add(store, 1) == 2
        store.put_label(1, Label(DEPTH, "t", "1"))
        assert add(store, 1) is None


def test_a_full_disk_is_reported_loses_nothing_and_logging_goes_on(path: Path) -> None:
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
            store.put_label(1, Label(noise, "t", "1"))
        assert [frame.id for frame in store.unlabelled(9)] == [1, 2, 3, 4, 5]

        writer.execute("PRAGMA max_page_count = 1000000")
        assert add(store, 51) == 6  # takes the id that was rolled back, with another view
        assert add(store, 50) == 7
        assert add(store, 51) is None
        store.put_label(1, Label(DEPTH, "t", "1"))
    assert set(check_whole(path)) == {1, 2, 3, 4, 5, 6, 7}


def test_a_file_that_was_moved_away_gets_no_more_frames(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        add(store, 0)
        path.rename(path.with_name("kept.sqlite3"))
        with pytest.raises(FrameStoreError, match="moved or deleted"):
            add(store, 1)
