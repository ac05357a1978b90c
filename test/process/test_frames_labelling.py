"""The labeller, with teachers that are slow, picky, failing, or all of it."""

from __future__ import annotations

import threading
import time

import numpy as np

from helpers.children import wait_until
from helpers.labelling import TeacherDownError, answer, log
from tiekd_ros.framelog import (
    LabelAnswer,
    Labeller,
    LabellerSettings,
    LoggedFrame,
    NotNow,
    RefusedLabel,
    StoreLockedError,
)

HANG_S = 5.0


def test_all_waiting_frames_are_labelled_then_it_idles(store, labeller_of) -> None:
    log(store, *range(6))
    labeller = labeller_of(answer)
    wait_until(lambda: labeller.snapshot().link == "idle" and labeller.snapshot().labelled == 6)
    assert store.labelled_ids() == [1, 2, 3, 4, 5, 6]
    assert store.load(3).depth[0, 0] == 3.0
    assert store.stats().teachers == {"fake 1": 6}


def test_an_idle_labeller_wakes_when_a_frame_is_logged(store, labeller_of) -> None:
    labeller = labeller_of(answer)
    wait_until(lambda: labeller.snapshot().link == "idle")
    log(store, 0)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().labelled == 1)


def test_paused_it_asks_for_nothing_until_it_goes_on(store) -> None:
    asked = []

    def ask(frame: LoggedFrame) -> LabelAnswer:
        asked.append(frame.id)
        return answer(frame)

    labeller = Labeller(store, ask, LabellerSettings(poll_s=0.01))
    labeller.pause()
    labeller.start()
    log(store, 0)
    labeller.notify()
    time.sleep(0.1)
    assert asked == []
    labeller.resume()
    wait_until(lambda: labeller.snapshot().labelled == 1)
    assert labeller.stop()


def test_frames_of_another_process_are_found_without_notice(store, labeller_of) -> None:
    labeller = labeller_of(answer, LabellerSettings(poll_s=0.02))
    time.sleep(0.05)
    log(store, 0)
    wait_until(lambda: labeller.snapshot().labelled == 1)


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
    wait_until(lambda: labeller.snapshot().labelled == 9)
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
    wait_until(lambda: labeller.snapshot().labelled == 2 and labeller.snapshot().refused == 2)
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
    wait_until(lambda: labeller.snapshot().refused_in_a_row == 2)
    assert labeller.snapshot().last_refusal == "label_constant: 2 m everywhere"
    good.set()
    log(store, 2)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().labelled == 1)
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
    wait_until(lambda: labeller.snapshot().labelled == 1)
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
    wait_until(lambda: labeller.snapshot().failed >= 4)
    snapshot = labeller.snapshot()
    assert snapshot.link == "down"
    assert snapshot.last_error == "no route to host; start the teacher"
    assert len(store.unlabelled(9)) == 3
    up.set()
    wait_until(lambda: labeller.snapshot().labelled == 3)


def test_waits_grow_to_a_cap_and_only_one_request_probes(store, labeller_of) -> None:
    times: list[float] = []

    def down(frame: LoggedFrame) -> LabelAnswer:
        times.append(time.monotonic())
        raise TeacherDownError("down")

    log(store, *range(4))
    labeller_of(down, LabellerSettings(in_flight=1, poll_s=30, retry_s=0.04, max_retry_s=0.2))
    wait_until(lambda: len(times) >= 6)
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
    wait_until(lambda: labeller.snapshot().labelled == 3)
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
    wait_until(lambda: labeller.snapshot().labelled == 1)
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
    wait_until(lambda: labeller.snapshot().labelled == 1)
    assert asked == [1]
    assert labeller.snapshot().failed == 2


def test_stop_returns_promptly_while_the_teacher_hangs(store, labeller_of) -> None:
    hang = threading.Event()

    def hangs(frame: LoggedFrame) -> LabelAnswer:
        hang.wait(HANG_S)
        return answer(frame)

    log(store, 0)
    labeller = labeller_of(hangs)
    wait_until(lambda: labeller.snapshot().in_flight == 1)
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
    wait_until(lambda: labeller.snapshot().link == "down")
    assert labeller.snapshot().retry_in_s > 25
    assert labeller.stop(1.0)
