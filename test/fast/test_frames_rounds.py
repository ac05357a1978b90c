"""What a round has seen of the labels in the frame log, and what is new after it."""

from pathlib import Path

from helpers.stores import DEPTH, EAGER, add
from tiekd_ros.framelog import FrameStore


def test_labels_that_came_before_a_round_are_not_new_after_it(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        for k in range(4):
            add(store, k)
        for k in (1, 2):
            store.put_label(k, DEPTH, "t", "1")
        store.mark_round_started()
        store.put_label(3, DEPTH, "t", "1")  # while the round is under way
        assert store.stats().new_labels == 3
        store.mark_round_finished([2], 1)
        assert store.stats().new_labels == 1
        store.put_label(1, DEPTH, "t", "2")
        assert store.stats().new_labels == 2


def test_a_round_that_came_to_no_end_has_seen_nothing(tmp_path: Path) -> None:
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, EAGER) as store:
        add(store, 0)
        store.put_label(1, DEPTH, "t", "1")
        store.mark_round_started()
    with FrameStore(path, EAGER) as store:
        assert store.stats().new_labels == 1
        store.mark_round_started()
        store.mark_round_finished([], 2)
        assert store.stats().new_labels == 0
