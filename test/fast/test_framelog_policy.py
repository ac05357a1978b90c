"""Which frames are kept, and in which split; the split of a log holds for all that open it."""

from __future__ import annotations

import itertools
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from helpers.frames import filled_state, views
from tiekd_ros.core.errors import BadImageError, InvalidSettingError
from tiekd_ros.core.images import decode_image, encode_jpeg
from tiekd_ros.framelog import FrameLogSettings, FrameStore, ImportSettings, Observation, policy
from tiekd_ros.framelog.policy import (
    Neighbours,
    choose_split,
    is_too_soon,
    measure_image,
    quality_fault,
)

S = 1_000_000_000
WALL_TIME = 1_790_000_000 * S + 123_456_789
ALONE = Neighbours(float("inf"), frozenset())


def texture(low: int = 0, high: int = 256) -> np.ndarray:
    pixels = np.random.default_rng(0).integers(low, high, (60, 80, 3), dtype=np.uint8)
    return pixels.repeat(4, 0).repeat(4, 1)


def test_poor_images_are_refused_by_reason() -> None:
    covered = np.arange(240)[:, None, None] < 150
    for image, reason in (
        (texture(), None),
        (np.full((240, 320, 3), 120, np.uint8), policy.BLURRED),
        (texture(0, 10), policy.UNDEREXPOSED),
        (texture(248, 256), policy.OVEREXPOSED),
        (np.where(covered, 0, texture()), policy.UNDEREXPOSED),
        (np.where(covered, 255, texture()), policy.OVEREXPOSED),
    ):
        stats = measure_image(image.astype(np.uint8))
        assert quality_fault(FrameLogSettings(), stats) == reason


def test_sharpness_is_measured_at_one_size_and_of_images_only() -> None:
    image = texture()
    sharpness = measure_image(image.repeat(3, 0).repeat(3, 1)).sharpness
    assert sharpness == pytest.approx(measure_image(image).sharpness, rel=0.1)
    with pytest.raises(BadImageError):
        measure_image(np.zeros((10, 10), np.uint8))


def test_the_interval_counts_from_the_last_stamp_and_restarts_when_time_goes_back() -> None:
    settings = FrameLogSettings(min_interval_s=0.5)
    assert not is_too_soon(settings, WALL_TIME, None)
    assert is_too_soon(settings, WALL_TIME + S // 2 - 1, WALL_TIME)
    assert not is_too_soon(settings, WALL_TIME + S // 2, WALL_TIME)
    assert not is_too_soon(settings, WALL_TIME - 1, WALL_TIME)
    assert not is_too_soon(settings, 0, WALL_TIME)


@pytest.mark.parametrize("origin", [0, WALL_TIME, -5 * S])
def test_one_block_in_five_is_held_out_the_second_first(origin: int) -> None:
    settings = FrameLogSettings(block_s=1.0, held_out_every=5)
    splits = [
        choose_split(settings, origin + block * S + S // 2, origin, ALONE).split
        for block in range(-5, 10)
    ]
    assert splits == ["train", "held_out", "train", "train", "train"] * 3


def test_neighbours_in_time_never_straddle_the_split() -> None:
    settings = FrameLogSettings(block_s=1.0, guard_share=0.2)
    stamps = range(WALL_TIME, WALL_TIME + 20 * S, S // 50)
    choices = [(stamp, choose_split(settings, stamp, WALL_TIME, ALONE)) for stamp in stamps]
    kept = [(stamp, choice.split) for stamp, choice in choices if choice.split]
    gaps = [b - a for (a, one), (b, other) in itertools.pairwise(kept) if one != other]
    assert len(gaps) == 8
    assert min(gaps) >= 0.2 * S
    refused = {choice.reason for _, choice in choices if choice.split is None}
    assert refused == {policy.SPLIT_GUARD}
    settings = FrameLogSettings(block_s=1.0)  # a border inside one split is not guarded
    assert choose_split(settings, 3 * S, 0, ALONE).split == "train"
    assert choose_split(settings, 1 * S, 0, ALONE).reason == policy.SPLIT_GUARD


def test_a_known_view_is_refused_or_brings_its_split_with_it() -> None:
    held_out_time = 3 * S // 2
    near = Neighbours(1.0, frozenset({"train"}))
    keep_all = FrameLogSettings(block_s=1.0, min_novelty=0.0)
    assert choose_split(keep_all, held_out_time, 0, ALONE).split == "held_out"
    assert choose_split(keep_all, held_out_time, 0, near).split == "train"
    default = FrameLogSettings(block_s=1.0)
    assert choose_split(default, held_out_time, 0, near).reason == policy.NOT_NOVEL
    both = Neighbours(1.0, frozenset({"train", "held_out"}))  # between both: it is not kept
    choice = choose_split(FrameLogSettings(min_novelty=0.0), 0, 0, both)
    assert (choice.split, choice.reason) == (None, policy.SPLIT_GUARD)


def test_settings_that_cannot_work_are_refused_with_a_way_out() -> None:
    with pytest.raises(InvalidSettingError, match=r"min_novelty 1 .*identical_distance 1\.5"):
        FrameLogSettings(min_novelty=1.0)
    with pytest.raises(InvalidSettingError, match="min_brightness 200"):
        FrameLogSettings(min_brightness=200.0, max_brightness=100.0)


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


# The default thresholds on real indoor frames.

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "hololens" / "images"


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    if not FOLDER.is_dir():
        pytest.skip(f"the HoloLens frames are not at {FOLDER}")
    found = [decode_image(path.read_bytes()) for path in sorted(FOLDER.glob("*.png"))]
    assert len(found) == 45
    return found


def offer(store: FrameStore, image: np.ndarray, k: int) -> str:
    return store.add(Observation(image, k * S // 10, "cam")).reason


def test_consecutive_frames_are_kept_and_not_again_with_small_changes_or_blurred(
    tmp_path: Path, images
) -> None:
    rng = np.random.default_rng(0)
    settings = FrameLogSettings(min_interval_s=0.0, guard_share=0.0)
    with FrameStore(tmp_path / "frames.sqlite3", settings) as store:
        assert {offer(store, image, k) for k, image in enumerate(images)} == {policy.KEPT}
        for k, image in enumerate(images):
            noise = rng.normal(1.0, 4.0, image.shape)
            noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
            for again in (image, decode_image(encode_jpeg(image, 50)), noisy):
                assert offer(store, again, 100 + k) == policy.NOT_NOVEL
        assert store.stats().total == 45
        blurred = [cv2.GaussianBlur(image, (0, 0), 3.0) for image in images]
        reasons = [offer(store, image, 200 + k) for k, image in enumerate(blurred)]
        assert reasons.count(policy.BLURRED) >= 44


def test_a_recording_at_10_hz_has_both_splits_apart(tmp_path: Path, images) -> None:
    settings = FrameLogSettings(block_s=1.0)
    with FrameStore(tmp_path / "frames.sqlite3", settings) as store:
        for loop in range(3):  # played three times, the clock going on
            for k, image in enumerate(images):
                offer(store, image, loop * 45 + k)
        stats = store.stats()
        assert stats.frames["logged"]["train"] >= 6
        assert stats.frames["logged"]["held_out"] >= 2
        assert stats.total <= 45
        assert stats.not_kept[policy.NOT_NOVEL] > 0
