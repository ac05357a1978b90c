"""The byte bound, and who goes first."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tiekd_ros.framelog import (
    FrameLogSettings,
    FrameStore,
    Label,
    Observation,
    StoreFullError,
    policy,
)

S = 1_000_000_000
SMALL = FrameLogSettings(max_bytes_mb=1, min_interval_s=0.0, guard_share=0.0)
DEPTH = np.ones((8, 8), np.float32)


def view(seed: int) -> np.ndarray:
    """A grainy image of about 28 kB as JPEG, whose thumbnail depends on the seed."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, (6, 8, 3)).repeat(32, 0).repeat(32, 1)
    return (base + rng.integers(0, 56, base.shape)).astype(np.uint8)


def like(seed: int, step: int) -> np.ndarray:
    return np.clip(view(seed).astype(int) + step, 0, 255).astype(np.uint8)


def put(store: FrameStore, image: np.ndarray, stamp_s: float) -> int:
    verdict = store.add(Observation(image, int(stamp_s * S), "cam"))
    assert verdict.frame_id is not None, verdict
    return verdict.frame_id


def stored_ids(store: FrameStore) -> set[int]:
    return {frame.id for frame in store.unlabelled(999)} | set(store.labelled_ids())


def fill(store: FrameStore, first_seed: int, start_s: float = 10.0) -> None:
    """Add different views until something is evicted."""
    count = store.stats().total
    for k in range(200):
        put(store, view(first_seed + k), start_s + 0.01 * k)
        if store.stats().total <= count:
            return
        count = store.stats().total
    raise AssertionError("nothing was evicted")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    with FrameStore(tmp_path / "f.sqlite3", SMALL) as opened:
        yield opened


def test_the_log_never_exceeds_its_bytes_nor_gives_an_id_again(store) -> None:
    for k in range(60):
        assert put(store, view(k), 0.1 * k) == k + 1
        assert store.stats().bytes <= 1_000_000
    assert 8 < store.stats().total < 60
    assert 60 in stored_ids(store)
    store.close()
    assert store.path.stat().st_size < 1_300_000


def test_a_label_makes_room_for_itself_too(store) -> None:
    grain = np.random.default_rng(0).uniform(1, 100, (300, 300)).astype(np.float32)
    for k in range(30):
        put(store, view(k), 0.1 * k)
    newest = max(stored_ids(store))
    before = store.stats().total
    store.put_label(newest, Label(grain, "t", "1"))
    assert store.labelled_ids() == [newest]
    assert store.stats().total < before
    assert store.stats().bytes <= 1_000_000


def test_the_most_redundant_frame_goes_first(store) -> None:
    for k in range(5):
        put(store, view(k), 0.1 * k)
    older, newer = put(store, view(50), 1.0), put(store, like(50, 4), 1.1)
    fill(store, 100)
    left = stored_ids(store)
    assert {older, newer} - left == {older}
    assert {1, 2, 3, 4, 5} <= left


def test_rejected_then_used_frames_go_before_unlabelled_ones(store) -> None:
    twins = [put(store, view(50), 0.0), put(store, like(50, 4), 0.1)]  # unlabelled
    rejected, used, fresh = (put(store, view(k), 1.0 + k) for k in range(3))
    store.reject(rejected, "bad")
    store.put_label(used, Label(DEPTH, "t", "1"))
    store.put_label(fresh, Label(DEPTH, "t", "1"))
    store.mark_round_finished([used], 1)
    fill(store, 100)
    assert store.stats().rejected == {}
    assert used in stored_ids(store)
    fill(store, 300, 15.0)
    assert used not in stored_ids(store)
    assert {*twins, fresh} <= stored_ids(store)
    fill(store, 500, 17.0)
    assert len({*twins} & stored_ids(store)) == 1


def test_frames_that_a_round_passed_over_do_not_count_as_used(store) -> None:
    used, passed_over = (put(store, view(k), 1.0 + k) for k in range(2))
    store.put_label(used, Label(DEPTH, "t", "1"))
    store.put_label(passed_over, Label(DEPTH, "t", "1"))
    store.mark_round_started()
    store.mark_round_finished([used], 1)
    fill(store, 300, 15.0)
    assert {used, passed_over} & stored_ids(store) == {passed_over}


def test_the_held_out_split_keeps_its_share(tmp_path: Path) -> None:
    settings = dataclasses.replace(SMALL, block_s=1.0, held_out_every=5)
    with FrameStore(tmp_path / "f.sqlite3", settings) as store:
        for k in range(100):
            frame_id = put(store, view(k), 0.1 * k)
            store.put_label(frame_id, Label(DEPTH, "t", "1"))
            if k >= 15:  # once there has been a held-out block
                total = store.stats().total
                held_out = len(store.labelled_ids("held_out"))
                assert total // 5 - 1 <= held_out <= total // 5 + 10
        store.mark_round_finished(store.labelled_ids("train"), 1)
        labelled = store.labelled_ids("held_out")
        for k in range(100, 120):  # a held-out block, and the teacher is away
            put(store, view(k), 12.0 + 0.04 * k)
        assert store.labelled_ids("held_out") == labelled


def test_a_frame_that_alone_is_too_large_is_refused(store) -> None:
    huge = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    label = np.random.default_rng(0).uniform(1, 200, (900, 1200)).astype(np.float32)
    put(store, view(0), 0.0)
    verdict = store.add(Observation(huge, 5 * S, "cam"))
    assert verdict.reason == policy.NO_ROOM
    assert stored_ids(store) == {1}
    with pytest.raises(StoreFullError, match="raise it"):
        store.put_label(1, Label(label, "t", "1"))
    assert [frame.id for frame in store.unlabelled(9)] == [1]
    assert put(store, view(1), 6.0) == 2


def test_a_lowered_limit_is_reached_over_several_writes(tmp_path: Path) -> None:
    path = tmp_path / "f.sqlite3"
    with FrameStore(path, FrameLogSettings(min_interval_s=0.0, guard_share=0.0)) as store:
        for k in range(140):
            put(store, view(k), 0.1 * k)
    with FrameStore(path, SMALL) as store:
        put(store, view(500), 20.0)
        assert store.stats().bytes > 1_000_000
        put(store, view(501), 21.0)
        assert store.stats().bytes <= 1_000_000
