"""A frame log is split by one rule for good: who opens it with another keeps to it, and says so."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing

import pytest

from helpers.frames import filled_state, views
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.framelog import FrameLogSettings, FrameStore, ImportSettings, Observation

KEEP_ALL = {"min_interval_s": 0.0, "min_sharpness": 0.0, "min_novelty": 0.0, "guard_share": 0.0}
FIRST = FrameLogSettings(block_s=4.0, held_out_every=2, **KEEP_ALL)
OTHER = FrameLogSettings(block_s=1.0, held_out_every=5, **KEEP_ALL)


def add(store: FrameStore, number: int) -> None:
    assert store.add(Observation(views()[number].image, number * 10**9, "live")).kept


def splits(path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("SELECT split FROM frames ORDER BY id")]


def test_the_first_frame_settles_it_and_others_keep_to_it_and_warn_once(tmp_path, caplog):
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, FIRST) as store:
        assert store.rule is None
        add(store, 0)
        assert store.rule == (4.0, 2)
    assert not caplog.records
    with caplog.at_level(logging.WARNING), FrameStore(path, OTHER) as store:
        for number in range(1, 8):
            add(store, number)
        assert (store.settings.block_s, store.settings.held_out_every) == (4.0, 2)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "block_s = 4 and held_out_every = 2" in said
    assert splits(path) == ["train"] * 4 + ["held_out"] * 4


def test_two_that_log_at_once_agree(tmp_path):
    path = tmp_path / "frames.sqlite3"
    with FrameStore(path, FIRST) as one, FrameStore(path, OTHER) as other:
        for number in range(8):
            add((one, other)[number % 2], number)
    assert splits(path) == ["train"] * 4 + ["held_out"] * 4


def test_in_an_older_log_the_next_writer_settles_it(tmp_path):
    log = filled_state(tmp_path).frames
    with closing(sqlite3.connect(log)) as connection, connection:
        connection.execute("DELETE FROM meta WHERE key IN ('block_ns', 'held_out_every')")
    with FrameStore(log, OTHER) as store:
        assert store.rule is None
        assert store.add(Observation(views()[-1].image, 10**15, "live")).kept
        assert store.rule == (1.0, 5)


def test_an_import_takes_the_logs_rule_and_refuses_another():
    taken = ImportSettings().for_recording(10.0, (4.0, 2))
    assert (taken.block_s, taken.held_out_every) == (4.0, 2)
    new = ImportSettings().for_recording(10.0)
    assert (new.block_s, new.held_out_every) == (20.0, 5)
    assert ImportSettings(block_s=4.0).for_recording(10.0, (4.0, 2)).block_s == 4.0
    with pytest.raises(InvalidSettingError, match="split by block_s = 4,"):
        ImportSettings(block_s=5.0).for_recording(10.0, (4.0, 2))
    with pytest.raises(InvalidSettingError, match="block_s must be between"):
        ImportSettings(block_s=0.1).for_recording(10.0)
