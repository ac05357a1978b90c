"""The default thresholds on real indoor frames."""

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tiekd_ros.core.images import decode_image, encode_jpeg
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Observation, policy

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data" / "hololens" / "images"
S = 1_000_000_000

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"the HoloLens frames are not at {FOLDER}"
)


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    found = [decode_image(path.read_bytes()) for path in sorted(FOLDER.glob("*.png"))]
    assert len(found) == 45
    return found


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    settings = FrameLogSettings(min_interval_s=0.0, guard_share=0.0)
    with FrameStore(tmp_path / "frames.sqlite3", settings) as opened:
        yield opened


def offer(store: FrameStore, image: np.ndarray, k: int) -> str:
    return store.add(Observation(image, k * S // 10, "cam")).reason


def test_consecutive_frames_are_all_worth_keeping(store, images) -> None:
    assert {offer(store, image, k) for k, image in enumerate(images)} == {policy.KEPT}


def test_the_same_frames_with_small_changes_are_known_already(store, images) -> None:
    rng = np.random.default_rng(0)
    for k, image in enumerate(images):
        offer(store, image, k)
    for k, image in enumerate(images):
        noise = rng.normal(1.0, 4.0, image.shape)
        noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
        for again in (image, decode_image(encode_jpeg(image, 50)), noisy):
            assert offer(store, again, 100 + k) == policy.NOT_NOVEL
    assert store.stats().total == 45


def test_blurred_frames_are_refused(store, images) -> None:
    reasons = [
        offer(store, cv2.GaussianBlur(image, (0, 0), 3.0), k) for k, image in enumerate(images)
    ]
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
