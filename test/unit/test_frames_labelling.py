"""The labeller, with teachers that are slow, picky, failing, or all of it."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tiekd_ros.errors import TiekdError
from tiekd_ros.frames import (
    FrameLogSettings,
    FrameStore,
    LabelAnswer,
    Labeller,
    LabellerSettings,
    LoggedFrame,
    NotNow,
    Observation,
    RefusedLabel,
    StoreLockedError,
)

S = 1_000_000_000
DEADLINE_S = 5.0
QUICK = LabellerSettings(in_flight=2, poll_s=30.0, retry_s=0.02, max_retry_s=0.05)


class TeacherDownError(TiekdError):
    pass


def view(seed: int) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    return pixels.repeat(5, 0).repeat(5, 1)


def log(store: FrameStore, *seeds: int) -> None:
    for seed in seeds:
        assert store.add(Observation(view(seed), seed * S, "cam")).kept


def answer(frame: LoggedFrame) -> LabelAnswer:
    depth = np.full((6, 8), float(frame.id), np.float32)
    return LabelAnswer(depth, None, "fake", "1")


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
def labeller_of(store: FrameStore) -> Iterator[Callable[..., Labeller]]:
    started: list[Labeller] = []

    def make(
        ask: Callable[[LoggedFrame], LabelAnswer], settings: LabellerSettings = QUICK
    ) -> Labeller:
        labeller = Labeller(store, ask, settings)
        started.append(labeller)
        labeller.start()
        return labeller

    yield make
    for labeller in started:
        labeller.stop(2.0)


def test_all_waiting_frames_are_labelled_then_it_idles(store, labeller_of) -> None:
    log(store, *range(6))
    labeller = labeller_of(answer)
    eventually(lambda: labeller.snapshot().link == "idle" and labeller.snapshot().labelled == 6)
    assert store.labelled_ids() == [1, 2, 3, 4, 5, 6]
    assert store.load(3).depth[0, 0] == 3.0
    assert store.stats().teachers == {"fake 1": 6}


def test_an_idle_labeller_wakes_when_a_frame_is_logged(store, labeller_of) -> None:
    labeller = labeller_of(answer)
    eventually(lambda: labeller.snapshot().link == "idle")
    log(store, 0)
    labeller.notify()
    eventually(lambda: labeller.snapshot().labelled == 1)


def test_frames_of_another_process_are_found_without_notice(store, labeller_of) -> None:
    labeller = labeller_of(answer, LabellerSettings(poll_s=0.02))
    time.sleep(0.05)
    log(store, 0)
    eventually(lambda: labeller.snapshot().labelled == 1)


def test_no_more_requests_are_in_flight_than_allowed(store, labeller_of) -> None:
    busy, most, lock = set(), [0], threading.Lock()

    def slow(frame: LoggedFrame) -> LabelAnswer:
        with lock:
            assert frame.id not in busy
            busy.add(frame.id)
            most[0] = max(most[0], len(busy))
        time.sleep(0.02)
        with lock:
            busy.remove(frame.id)
        return answer(frame)

    log(store, *range(9))
    labeller = labeller_of(slow, LabellerSettings(in_flight=3, poll_s=30.0))
    eventually(lambda: labeller.snapshot().labelled == 9)
    assert most[0] == 3


def test_a_refused_frame_is_rejected_with_the_reason(store, labeller_of) -> None:
    def picky(frame: LoggedFrame) -> LabelAnswer:
        if frame.id == 2:
            raise RefusedLabel("relative_depth", "a text for people")
        if frame.id == 3:
            return LabelAnswer(np.full((4, 4), np.nan, np.float32), None, "fake", "1")
        return answer(frame)

    log(store, *range(4))
    labeller = labeller_of(picky)
    eventually(lambda: labeller.snapshot().labelled == 2 and labeller.snapshot().refused == 2)
    assert store.stats().rejected == {"relative_depth": 1, "bad_label": 1}
    snapshot = labeller.snapshot()
    assert snapshot.link in ("ok", "idle")
    assert snapshot.refusals == {"relative_depth": 1, "bad_label": 1}


def test_refusals_in_a_row_end_with_the_next_label(store, labeller_of) -> None:
    good = threading.Event()

    def picky(frame: LoggedFrame) -> LabelAnswer:
        if not good.is_set():
            raise RefusedLabel("label_constant", "2 m everywhere")
        return answer(frame)

    log(store, 0, 1)
    labeller = labeller_of(picky)
    eventually(lambda: labeller.snapshot().refused_in_a_row == 2)
    assert labeller.snapshot().last_refusal == "label_constant: 2 m everywhere"
    good.set()
    log(store, 2)
    labeller.notify()
    eventually(lambda: labeller.snapshot().labelled == 1)
    assert labeller.snapshot().refused_in_a_row == 0


def test_a_teacher_that_says_when_to_come_back_is_asked_then(store, labeller_of) -> None:
    asked: list[int] = []

    def later(frame: LoggedFrame) -> LabelAnswer:
        asked.append(frame.id)
        if len(asked) < 4:
            raise NotNow("nobody is there", 0.01)
        return answer(frame)

    log(store, 0)
    # Its own waits would take minutes.
    labeller = labeller_of(later, LabellerSettings(retry_s=60.0, max_retry_s=600.0))
    eventually(lambda: labeller.snapshot().labelled == 1)
    assert len(asked) == 4


def test_an_unreachable_teacher_loses_nothing_and_is_tried_until_it_answers(
    store, labeller_of
) -> None:
    up = threading.Event()

    def flaky(frame: LoggedFrame) -> LabelAnswer:
        if not up.is_set():
            raise TeacherDownError("no route to host; start the teacher")
        return answer(frame)

    log(store, *range(3))
    labeller = labeller_of(flaky)
    eventually(lambda: labeller.snapshot().failed >= 4)
    snapshot = labeller.snapshot()
    assert snapshot.link == "down"
    assert snapshot.last_error == "no route to host; start the teacher"
    assert len(store.unlabelled(9)) == 3
    up.set()
    eventually(lambda: labeller.snapshot().labelled == 3)


def test_waits_grow_to_a_cap_and_only_one_request_probes(store, labeller_of) -> None:
    times: list[float] = []

    def down(frame: LoggedFrame) -> LabelAnswer:
        times.append(time.monotonic())
        raise TeacherDownError("down")

    log(store, *range(4))
    labeller_of(down, LabellerSettings(in_flight=1, poll_s=30, retry_s=0.04, max_retry_s=0.2))
    eventually(lambda: len(times) >= 6)
    gaps = np.diff(times[:6])
    assert gaps[0] >= 0.02
    assert all(gaps[3:] >= 0.1)  # half of the cap, the rest is jitter


def test_one_frame_that_always_fails_does_not_block_the_others(store, labeller_of) -> None:
    def chokes(frame: LoggedFrame) -> LabelAnswer:
        if frame.id == 1:
            raise ValueError("cannot digest")
        return answer(frame)

    log(store, *range(4))
    labeller = labeller_of(chokes)
    eventually(lambda: labeller.snapshot().labelled == 3)
    assert labeller.snapshot().last_error == "ValueError: cannot digest"
    assert [frame.id for frame in store.unlabelled(9)] == [1]


def test_no_fault_in_looking_for_frames_ends_the_thread(store, labeller_of, monkeypatch) -> None:
    faults = iter([ValueError("a bug"), StoreLockedError("held")])
    real = store.unlabelled

    def unlabelled(limit: int, skip: set[int]) -> list[LoggedFrame]:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return real(limit, skip)

    monkeypatch.setattr(store, "unlabelled", unlabelled)
    log(store, 0)
    labeller = labeller_of(answer, LabellerSettings(poll_s=0.02, in_flight=1))
    eventually(lambda: labeller.snapshot().labelled == 1)
    assert labeller.snapshot().failed == 2


def test_an_answer_outlives_a_locked_store(store, labeller_of, monkeypatch) -> None:
    asked: list[int] = []
    faults = iter([StoreLockedError("held"), StoreLockedError("held")])
    real = store.put_label

    def put_label(*args: object) -> None:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        real(*args)

    def ask(frame: LoggedFrame) -> LabelAnswer:
        asked.append(frame.id)
        return answer(frame)

    monkeypatch.setattr(store, "put_label", put_label)
    log(store, 0)
    labeller = labeller_of(ask)
    eventually(lambda: labeller.snapshot().labelled == 1)
    assert asked == [1]
    assert labeller.snapshot().failed == 2


def test_stop_returns_promptly_while_the_teacher_hangs(store, labeller_of) -> None:
    hang = threading.Event()

    def hangs(frame: LoggedFrame) -> LabelAnswer:
        hang.wait(DEADLINE_S)
        return answer(frame)

    log(store, 0)
    labeller = labeller_of(hangs)
    eventually(lambda: labeller.snapshot().in_flight == 1)
    assert labeller.snapshot().link == "waiting"
    started = time.monotonic()
    assert not labeller.stop(0.1)
    assert time.monotonic() - started < 1.0
    hang.set()
    assert labeller.stop(2.0)


def test_an_idle_or_backing_off_labeller_stops_at_once(store, labeller_of) -> None:
    def down(frame: LoggedFrame) -> LabelAnswer:
        raise TeacherDownError("down")

    log(store, 0)
    labeller = labeller_of(down, LabellerSettings(retry_s=60.0, max_retry_s=60.0))
    eventually(lambda: labeller.snapshot().link == "down")
    assert labeller.snapshot().retry_in_s > 25
    assert labeller.stop(1.0)
