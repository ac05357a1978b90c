"""The life of a frame in a real file, and the recorder that stores a stream in one."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from helpers.stores import EAGER, add, view
from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, BadImageError
from tiekd_ros.core.images import decode_image, thumbnail_distances
from tiekd_ros.framelog import (
    AddResult,
    FrameLogSettings,
    FrameStore,
    FrameStoreError,
    Label,
    Observation,
    Recorder,
    StoreLockedError,
    UndecodableFrameError,
    UnknownFrameError,
    policy,
)
from tiekd_ros.framelog.novelty import ThumbnailIndex

S = 1_000_000_000
NOW = 1_790_000_000 * S
CAMERA = Intrinsics(200.0, 201.0, 79.5, 59.5)
DEPTH = np.array([[1.0, 2.5], [np.nan, 300.0]], np.float32)


def noisy(image: np.ndarray, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0.5, 4, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def seen(seed: int, stamp_s: float) -> Observation:
    return Observation(view(seed), NOW + round(stamp_s * S), "cam", CAMERA, confidence=0.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames.sqlite3"


def test_a_frame_is_logged_labelled_used_and_loaded(path: Path) -> None:
    with FrameStore(path) as store:
        verdict = store.add(seen(0, 0))
        assert verdict.kept
        assert verdict.reason == "kept"
        (frame,) = store.unlabelled(10)
        assert (frame.id, frame.stamp_ns, frame.frame_id) == (verdict.frame_id, NOW, "cam")
        assert (frame.width, frame.height, frame.intrinsics) == (160, 120, CAMERA)
        assert decode_image(frame.jpeg).shape == (120, 160, 3)

        confidence = np.array([[0.0, 0.5], [1.0, np.nan]], np.float32)
        store.put_label(frame.id, Label(DEPTH, "metric3d", "2", confidence))
        assert store.unlabelled(10) == []
        assert store.labelled_ids() == store.labelled_ids("train") == [frame.id]
        assert store.labelled_ids("held_out") == []
        assert store.stats().new_labels == 1

        loaded = store.load(np.int64(frame.id))
        assert loaded.image.dtype == np.uint8
        assert np.abs(loaded.image.astype(int) - view(0)).mean() < 20
        np.testing.assert_allclose(loaded.depth, [[1.0, 2.5], [np.nan, np.nan]])
        np.testing.assert_allclose(loaded.confidence, [[0, 0.5], [1, 0]], atol=1 / 255)
        assert (loaded.intrinsics, loaded.stamp_ns, loaded.split) == (CAMERA, NOW, "train")

        store.mark_round_finished([frame.id, 999], 3)
        assert store.stats().new_labels == 0


def test_everything_is_there_after_the_file_is_opened_again(path: Path) -> None:
    with FrameStore(path) as store:
        for k in range(4):
            store.add(seen(k, k))
        store.put_label(1, Label(DEPTH, "t", "1"))
    with FrameStore(path) as store:
        assert [frame.id for frame in store.unlabelled(2)] == [2, 3]  # oldest first
        assert [frame.id for frame in store.unlabelled(2, skip={3})] == [2, 4]
        assert store.labelled_ids() == [1]
        assert store.add(seen(1, 9)).reason == policy.NOT_NOVEL
        assert store.add(seen(7, 3.1)).reason == policy.TOO_SOON
        assert store.add(seen(7, 9)).frame_id == 5


def test_a_new_label_replaces_the_old_one_and_a_rejected_frame_loses_its_label(path: Path) -> None:
    with FrameStore(path) as store:
        store.add(seen(0, 0))
        store.put_label(1, Label(DEPTH, "t", "1"))
        store.mark_round_finished([1], 1)
        store.put_label(1, Label(DEPTH * 2, "t", "2"))
        assert store.load(1).depth[0, 0] == 2
        assert store.stats().new_labels == 1  # as a new one
        assert store.stats().teachers == {"t 2": 1}
        store.reject(1, "too_flat")
        assert store.labelled_ids() == store.unlabelled(1) == []
        assert store.stats().rejected == {"too_flat": 1}
        with pytest.raises(UnknownFrameError):
            store.load(1)
        assert store.add(seen(0, 5)).reason == policy.NOT_NOVEL


@pytest.mark.parametrize(
    ("table", "column"), [("images", "jpeg"), ("labels", "depth"), ("labels", "confidence")]
)
def test_one_damaged_frame_is_told_from_a_damaged_file(path: Path, table: str, column: str) -> None:
    with FrameStore(path) as store:
        for k in range(2):
            store.add(seen(k, k))
            store.put_label(k + 1, Label(DEPTH, "t", "1", np.ones((2, 2), np.float32)))
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute(f"UPDATE {table} SET {column} = x'ffd8ff' WHERE frame_id = 1")
        with pytest.raises(UndecodableFrameError, match=r"frame 1 .*is damaged"):
            store.load(1)
        assert store.load(2).id == 2
        store.reject(1, "undecodable")
        assert store.labelled_ids() == [2]


def test_unusable_labels_and_frames_are_refused_before_anything_changes(path: Path) -> None:
    with FrameStore(path) as store:
        store.add(seen(0, 0))
        with pytest.raises(BadDepthError, match="at least one known depth"):
            store.put_label(1, Label(np.full((2, 2), np.nan, np.float32), "t", "1"))
        with pytest.raises(BadDepthError, match="confidence has shape"):
            store.put_label(1, Label(DEPTH, "t", "1", np.ones((3, 3), np.float32)))
        with pytest.raises(UnknownFrameError):
            store.put_label(99, Label(DEPTH, "t", "1"))
        with pytest.raises(UnknownFrameError):
            store.reject(99, "gone")
        with pytest.raises(BadImageError):
            store.add(Observation(np.zeros((4, 4), np.uint8), NOW + S, "cam"))
        assert len(store.unlabelled(9)) == 1


def test_statistics_count_states_splits_and_refusals_and_fit_json(path: Path) -> None:
    with FrameStore(path, FrameLogSettings(block_s=1.0)) as store:
        for k in range(4):
            store.add(seen(k, 0.6 * k + 0.2))
        store.add(seen(9, 2.1))
        store.put_label(1, Label(DEPTH, "t", "1"))
        stats = store.stats()
        assert stats.frames["logged"] == {"train": 1, "held_out": 2}
        assert stats.frames["labelled"] == {"train": 1, "held_out": 0}
        assert stats.total == 4
        assert stats.not_kept == {policy.TOO_SOON: 1}
        assert stats.first_stamp_ns == NOW + S // 5
        assert stats.last_stamp_ns == NOW + 2 * S
        assert 0 < stats.bytes < stats.max_bytes == 2_000_000_000
        assert json.loads(json.dumps(stats.as_dict()))["total"] == 4


def test_labelled_frames_are_counted_with_the_time_that_they_cover(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        assert store.labelled_span() == (0, 0.0)
        ids = [store.add(seen(number, 2.0 * number)).frame_id for number in range(4)]
        for frame_id in ids[1:3]:
            store.put_label(frame_id, Label(DEPTH, "teacher", "1"))
        assert store.labelled_span() == (2, pytest.approx(2.0))


def test_a_recording_in_a_loop_stops_adding_frames(path: Path) -> None:
    settings = FrameLogSettings(block_s=1.0)
    with FrameStore(path, settings) as store:
        for stamp in range(3):
            for k in range(6):  # the bag's own stamps come again
                store.add(seen(k, 0.6 * k))
            assert store.stats().total in (5, 6), stamp
        total = store.stats().total
        for k in range(30):  # the clock goes on
            store.add(Observation(noisy(view(k % 6), k), NOW + (10 + k) * S, "cam"))
        assert store.stats().total <= max(total, 6)


def test_looped_duplicates_share_their_split_where_they_are_kept(path: Path) -> None:
    settings = FrameLogSettings(block_s=1.0, min_novelty=0.0, guard_share=0.0)
    splits: dict[int, set[str]] = {}
    with FrameStore(path, settings) as store:
        for k in range(35):  # seven views, shown again in other blocks each time
            verdict = store.add(Observation(noisy(view(k % 7), k), NOW + k * S, "cam"))
            store.put_label(verdict.frame_id, Label(DEPTH, "t", "1"))
            splits.setdefault(k % 7, set()).add(store.load(verdict.frame_id).split)
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {"train", "held_out"}


def test_stamps_that_go_back_do_not_stop_logging(path: Path) -> None:
    with FrameStore(path) as store:
        assert store.add(seen(0, 100)).kept
        assert store.add(seen(1, 3)).kept
        assert store.add(seen(2, 3.1)).reason == policy.TOO_SOON
        assert store.add(Observation(view(3), 0, "cam")).kept
        assert store.unlabelled(9)[-1].intrinsics is None  # its camera is not calibrated


def test_distances_and_nearest_frames_stay_right_while_frames_come_and_go() -> None:
    rng = np.random.default_rng(1)
    index, thumbs, links = ThumbnailIndex(), {}, {}
    for k in range(300):
        thumb = rng.integers(0, 256, (24, 32)).astype(np.float32)
        distances = index.distances(thumb)
        if thumbs:  # the index has an order of its own
            true = thumbnail_distances(thumb, np.stack(list(thumbs.values())))
            np.testing.assert_allclose(np.sort(distances), np.sort(true), rtol=1e-6)
        thumbs[k] = thumb
        changed = index.add(k, thumb, "train", distances)
        if k % 3 == 2:
            gone = int(rng.choice(list(thumbs)))
            del thumbs[gone]
            links.update({link.frame_id: link for link in changed})
            links.pop(gone, None)
            changed = index.remove(gone)
        links.update({link.frame_id: link for link in changed})
    assert set(links) == set(thumbs)
    for k, thumb in thumbs.items():
        others = [i for i in thumbs if i != k]
        true = thumbnail_distances(thumb, np.stack([thumbs[i] for i in others]))
        assert links[k].distance == pytest.approx(float(true.min()), rel=1e-6)
        assert links[k].nearest_id == others[int(true.argmin())]


def test_a_closed_or_read_only_store_says_so(path: Path) -> None:
    with pytest.raises(FrameStoreError, match="there is no frame log"):
        FrameStore(path, read_only=True)
    assert not path.exists()
    store = FrameStore(path)
    store.add(seen(0, 0))
    with FrameStore(path, read_only=True) as reader:
        assert reader.stats().total == 1
        assert len(reader.unlabelled(1)) == 1
        with pytest.raises(FrameStoreError, match="reading only"):
            reader.reject(1, "no")
    store.close()
    store.close()
    with pytest.raises(FrameStoreError, match="closed"):
        store.stats()
    with pytest.raises(FrameStoreError, match="folder must exist"):
        FrameStore(path.parent / "nowhere" / "frames.sqlite3")


def test_labels_that_came_before_a_round_are_not_new_after_its_end(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        for k in range(4):
            add(store, k)
        for k in (1, 2):
            store.put_label(k, Label(DEPTH, "t", "1"))
        store.mark_round_started()
        store.put_label(3, Label(DEPTH, "t", "1"))  # while the round is under way
        assert store.stats().new_labels == 3
        store.mark_round_finished([2], 1)
        assert store.stats().new_labels == 1
        store.put_label(1, Label(DEPTH, "t", "2"))
        store.mark_round_started()  # and is killed: it has seen nothing
    with FrameStore(path, EAGER) as store:
        assert store.stats().new_labels == 2
        store.mark_round_started()
        store.mark_round_finished([], 2)
        assert store.stats().new_labels == 0


def test_images_are_stored_counted_and_announced_unless_it_is_paused(store: FrameStore) -> None:
    announced: list[int] = []
    recorder = Recorder(store, on_kept=announced.append)
    for number in (0, 1, 2, 2):
        recorder.record(seen(number, number))
    found = recorder.snapshot()
    assert (found.offered, found.kept, found.not_kept) == (4, 3, {"too_soon": 1})
    assert announced == [1, 2, 3]
    assert store.stats().total == 3
    recorder.pause()
    recorder.record(seen(3, 3))
    assert recorder.snapshot().paused
    assert recorder.snapshot().offered == 4
    recorder.resume()
    recorder.record(seen(4, 4))
    assert store.unlabelled(9)[-1].stamp_ns == NOW + 4 * S


@pytest.mark.parametrize("fault", [StoreLockedError("held"), RuntimeError("a bug")])
def test_logging_goes_on_when_a_fault_is_over(store, monkeypatch, fault) -> None:
    def add(observation: Observation) -> AddResult:
        raise fault

    recorder = Recorder(store)
    with monkeypatch.context() as broken:
        broken.setattr(store, "add", add)
        for number in range(2):
            recorder.record(seen(number, number))
    found = recorder.snapshot()
    assert (found.errors, found.healthy) == (2, False)
    assert str(fault) in found.last_error
    recorder.record(Observation(np.zeros((3, 3), np.float32), NOW, "cam"))  # type: ignore[arg-type]
    assert "expected a non-empty RGB image" in recorder.snapshot().last_error
    recorder.record(seen(5, 5))
    found = recorder.snapshot()
    assert (found.errors, found.healthy, found.kept) == (3, True, 1)
