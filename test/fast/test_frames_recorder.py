"""The recorder: newest wins, nobody waits, faults pass."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tiekd_ros.framelog import (
    FrameLogSettings,
    FrameStore,
    Observation,
    Recorder,
    StoreCorruptError,
    StoreFullError,
    StoreLockedError,
    Verdict,
)

S = 1_000_000_000
DEADLINE_S = 5.0
OFFER_S = 0.05
"""An offer takes microseconds; this much only on a machine that stalls."""


def seen(seed: int) -> Observation:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return Observation(pixels.repeat(5, 0).repeat(5, 1), seed * S, "cam")


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    with FrameStore(tmp_path / "frames.sqlite3", FrameLogSettings(guard_share=0.0)) as opened:
        yield opened


@pytest.fixture
def recorder(store: FrameStore) -> Iterator[Recorder]:
    made = Recorder(store)
    made.start()
    yield made
    assert made.stop()


def test_offered_images_are_stored_and_announced(store: FrameStore) -> None:
    announced: list[int] = []
    recorder = Recorder(store, on_kept=announced.append)
    recorder.start()
    for k in range(3):
        recorder.offer(seen(k))
        eventually(lambda k=k: recorder.snapshot().kept == k + 1)
    recorder.offer(seen(2))
    eventually(lambda: recorder.snapshot().not_kept == {"too_soon": 1})
    assert recorder.stop()
    assert announced == [1, 2, 3]
    assert store.stats().total == 3


def test_the_newest_image_wins_and_an_offer_never_waits(store, recorder, monkeypatch) -> None:
    free, taken, stamps = threading.Event(), threading.Event(), []
    real = store.add

    def slow(observation: Observation) -> Verdict:
        taken.set()
        free.wait(DEADLINE_S)
        stamps.append(observation.stamp_ns)
        return real(observation)

    monkeypatch.setattr(store, "add", slow)
    recorder.offer(seen(0))
    assert taken.wait(DEADLINE_S)
    started = time.monotonic()
    for k in range(1, 6):
        recorder.offer(seen(k))
    assert time.monotonic() - started < OFFER_S + 0.2  # making the five images included
    free.set()
    eventually(lambda: recorder.snapshot().kept == 2)
    assert stamps == [0, 5 * S]
    assert (recorder.snapshot().offered, recorder.snapshot().replaced) == (6, 4)


def test_a_paused_recorder_takes_nothing_until_resumed(store, recorder) -> None:
    recorder.pause()
    recorder.offer(seen(0))
    assert recorder.snapshot().paused
    assert recorder.snapshot().offered == 0
    recorder.resume()
    recorder.offer(seen(1))
    eventually(lambda: recorder.snapshot().kept == 1)
    assert store.unlabelled(9)[0].stamp_ns == S


@pytest.mark.parametrize(
    "fault",
    [
        StoreLockedError("held by another program"),
        StoreFullError("no space left"),
        StoreCorruptError("move it away"),
        RuntimeError("a bug"),
    ],
)
def test_logging_goes_on_when_a_fault_is_over(store, recorder, monkeypatch, fault) -> None:
    faulty = [True]
    real = store.add

    def add(observation: Observation) -> Verdict:
        if faulty[0]:
            raise fault
        return real(observation)

    monkeypatch.setattr(store, "add", add)
    for k in range(2):
        recorder.offer(seen(k))
        eventually(lambda k=k: recorder.snapshot().errors == k + 1)
    assert not recorder.snapshot().healthy
    assert str(fault) in recorder.snapshot().last_error
    faulty[0] = False
    recorder.offer(seen(5))
    eventually(lambda: recorder.snapshot().kept == 1)
    assert recorder.snapshot().healthy
    assert recorder.snapshot().errors == 2


def test_an_array_that_is_no_image_is_counted_not_fatal(recorder) -> None:
    recorder.offer(Observation(np.zeros((3, 3), np.float32), 0, "cam"))  # type: ignore[arg-type]
    eventually(lambda: recorder.snapshot().errors == 1)
    assert "expected a non-empty RGB image" in recorder.snapshot().last_error
    recorder.offer(seen(1))
    eventually(lambda: recorder.snapshot().kept == 1)


def test_a_stopped_recorder_drops_what_waits_and_what_comes(store) -> None:
    recorder = Recorder(store)
    recorder.offer(seen(0))
    assert recorder.stop()
    recorder.offer(seen(1))
    assert store.stats().total == 0
