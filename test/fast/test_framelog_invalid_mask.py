"""Frames that show what the camera did not see: the mask that is kept until their label comes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from helpers.stores import EAGER, S, view
from tiekd_ros.core.errors import BadDepthError
from tiekd_ros.core.images import Mask, decode_mask_png, encode_mask_png
from tiekd_ros.framelog import FrameStore, Label, Observation

HEIGHT, WIDTH = 120, 160
DEPTH = np.full((HEIGHT, WIDTH), 2, np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "frames.sqlite3"


def mask() -> Mask:
    invalid_mask = np.zeros((HEIGHT, WIDTH), bool)
    invalid_mask[:, :40] = True
    invalid_mask[100:] = True
    return invalid_mask


def add(store: FrameStore, seed: int, invalid_mask: Mask | None = None) -> int:
    frame_id = store.add(
        Observation(view(seed), seed * S, "cam", invalid_mask=invalid_mask)
    ).frame_id
    assert frame_id is not None
    return frame_id


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def test_a_label_of_any_size_is_unknown_where_the_camera_saw_nothing(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        seen, bare = add(store, 1, mask()), add(store, 2)
        for scale in (4, 2, 1):
            for frame_id in (seen, bare):  # a later label too
                store.put_label(frame_id, Label(DEPTH[::scale, ::scale], "t", "1"))
            assert (np.isnan(store.load(seen).depth) == mask()[::scale, ::scale]).all()
            assert np.isfinite(store.load(bare).depth).all()
        masked = Observation(view(3), 3 * S, "cam", invalid_mask=mask())
        frame_id = store.add(masked, Label(DEPTH, "t", "1")).frame_id
        assert (np.isnan(store.load(frame_id).depth) == mask()).all()


def test_without_a_known_depth_or_a_sound_mask_there_is_no_label(path: Path) -> None:
    data = encode_mask_png(mask())
    assert (decode_mask_png(data) == mask()).all()
    assert len(data) < 200
    with FrameStore(path, EAGER) as store:
        frame_id = add(store, 1, mask())
        with pytest.raises(BadDepthError, match="at least one known depth"):
            store.put_label(frame_id, Label(np.where(mask(), DEPTH, np.nan), "t", "1"))
        assert [frame.id for frame in store.unlabelled(9)] == [frame_id]
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE blind_parts SET mask = x'00'")
        with pytest.raises(BadDepthError, match="mask"):
            store.put_label(frame_id, Label(DEPTH, "t", "1"))


def test_a_log_of_an_earlier_version_goes_on_and_loses_nothing(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        waiting, labelled = add(store, 1), add(store, 2)
        store.put_label(labelled, Label(DEPTH, "t", "1"))
    assert "blind_parts" not in tables(path)  # it is one, as earlier versions made it
    with FrameStore(path, read_only=True) as store:
        assert [frame.invalid_mask_png for frame in store.unlabelled(9)] == [None]
    with FrameStore(path, EAGER) as store:
        seen = add(store, 3, mask())
        assert [frame.id for frame in store.unlabelled(9)] == [waiting, seen]
        for frame_id in (waiting, seen):
            store.put_label(frame_id, Label(DEPTH, "t", "1"))
        known = [int(np.isfinite(store.load(i).depth).sum()) for i in store.labelled_ids()]
    assert known == [DEPTH.size, DEPTH.size, int((~mask()).sum())]


def test_an_earlier_version_goes_on_with_a_log_that_has_masks(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        add(store, 1, mask())
    with closing(sqlite3.connect(path)) as connection, connection:  # what it does, word for word
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute(
            "INSERT INTO frames (stamp_ns, camera_frame, width, height, fx, fy, cx, cy, split, "
            "state, sharpness, exposure, novelty, student_confidence, byte_size) "
            "VALUES (5, 'cam', 8, 8, NULL, NULL, NULL, NULL, 'train', 'logged', 1, 1, 1, 1, 9)"
        )
        connection.execute("INSERT INTO images VALUES (2, x'00', x'00')")
        connection.execute("DELETE FROM frames WHERE id = 1")
        assert connection.execute("SELECT COUNT(*) FROM blind_parts").fetchone() == (0,)


def test_another_program_that_has_the_log_open_sees_the_first_mask(path: Path) -> None:
    with FrameStore(path, EAGER) as one, FrameStore(path, EAGER) as other:
        add(one, 1)
        assert len(other.unlabelled(9)) == 1
        seen = add(one, 2, mask())
        assert other.unlabelled(9)[1].invalid_mask_png is not None
        other.put_label(seen, Label(DEPTH, "t", "1"))
        assert (np.isnan(one.load(seen).depth) == mask()).all()


def test_the_mask_goes_with_its_frame(path: Path) -> None:
    with FrameStore(path, EAGER) as store:
        add(store, 1, mask())
        store.reject(1, "blurred")
    with closing(sqlite3.connect(path)) as connection, connection:
        (size,) = connection.execute("SELECT byte_size FROM frames").fetchone()
        parts = "LENGTH(thumbnail) + LENGTH(jpeg) + LENGTH(mask)"
        joined = "images JOIN blind_parts USING (frame_id)"
        assert connection.execute(f"SELECT {parts} FROM {joined}").fetchone() == (size,)
