"""The labeller, with teachers that are slow, picky, failing, away, or not to be believed.

A test passes when no frame is lost: it ends labelled, rejected with a reason, or waits.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.stores import QUICK, TeacherDownError, answer, log
from tiekd_ros.core.errors import InvalidSettingError
from tiekd_ros.framelog import (
    Label,
    Labeller,
    LabellerSettings,
    LabelRejected,
    LoggedFrame,
    StoreLockedError,
    TeacherUnavailable,
)
from tiekd_ros.framelog.labeller import RetryState, SuspectTeacherError

HANG_S = 5.0


class Teacher:
    """A label source whose reply, an error or a function, may be changed; it notes the requests."""

    def __init__(self, reply: Exception | Callable[[LoggedFrame], Label] = answer) -> None:
        self.reply = reply
        self.asked: list[int] = []
        self.times: list[float] = []

    def __call__(self, frame: LoggedFrame) -> Label:
        self.asked.append(frame.id)
        self.times.append(time.monotonic())
        if isinstance(self.reply, Exception):
            raise self.reply
        return self.reply(frame)


def test_all_waiting_frames_are_labelled_then_it_idles_until_another_is_logged(
    store, labeller_of
) -> None:
    log(store, *range(6))
    labeller = labeller_of(answer)
    wait_until(lambda: labeller.snapshot().link == "idle" and labeller.snapshot().labelled == 6)
    assert store.labelled_ids() == [1, 2, 3, 4, 5, 6]
    assert store.load(3).depth[0, 0] == 3.0
    assert store.stats().teachers == {"fake 1": 6}
    log(store, 6)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().labelled == 7)


def test_idle_threads_do_not_wake_each_other_for_ever(store, labeller_of, monkeypatch) -> None:
    looks = threading.Semaphore(0)
    look = store.unlabelled

    def counted(*arguments: object, **more: object) -> object:
        looks.release()
        return look(*arguments, **more)

    monkeypatch.setattr(store, "unlabelled", counted)
    labeller = labeller_of(answer, LabellerSettings(poll_s=60.0, in_flight=2))
    wait_until(lambda: labeller.snapshot().link == "idle")
    assert not all(looks.acquire(timeout=0.3) for _ in range(20))


def test_paused_it_asks_for_nothing_and_frames_of_others_are_found_without_notice(store) -> None:
    teacher = Teacher()
    labeller = Labeller(store, teacher, LabellerSettings(poll_s=0.01))
    labeller.pause()
    labeller.start()
    log(store, 0)
    labeller.notify()
    time.sleep(0.1)
    assert teacher.asked == []
    labeller.resume()
    wait_until(lambda: labeller.snapshot().labelled == 1)
    log(store, 1)
    wait_until(lambda: labeller.snapshot().labelled == 2)
    assert labeller.stop()


def test_no_more_requests_are_in_flight_than_allowed(store, labeller_of) -> None:
    busy, most, lock = set(), [0], threading.Lock()

    def slow(frame: LoggedFrame) -> Label:
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


def test_a_refused_frame_is_rejected_and_refusals_in_a_row_end_with_the_next_label(
    store, labeller_of
) -> None:
    def picky(frame: LoggedFrame) -> Label:
        if frame.id == 1:
            return Label(np.full((4, 4), np.nan, np.float32), "fake", "1")
        if frame.id == 2:
            raise LabelRejected("label_constant", "2 m everywhere")
        return answer(frame)

    log(store, 0, 1)
    labeller = labeller_of(picky, LabellerSettings(in_flight=1))
    wait_until(lambda: labeller.snapshot().refused_in_a_row == 2)
    wait_until(lambda: labeller.snapshot().refused == 2)
    snapshot = labeller.snapshot()
    assert snapshot.last_refusal == "label_constant: 2 m everywhere"
    assert snapshot.link in ("ok", "idle")
    assert snapshot.refusals == store.stats().rejected == {"label_constant": 1, "bad_label": 1}
    log(store, 2)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().labelled == 1)
    assert labeller.snapshot().refused_in_a_row == 0


def test_a_teacher_that_says_when_to_come_back_is_asked_then(store, labeller_of) -> None:
    teacher = Teacher(TeacherUnavailable("away", 0.01))
    log(store, 0)
    # Its own waits would take minutes.
    labeller = labeller_of(teacher, LabellerSettings(retry_s=60.0, max_retry_s=600.0))
    wait_until(lambda: len(teacher.asked) >= 4)
    teacher.reply = answer
    wait_until(lambda: labeller.snapshot().labelled == 1)


def test_an_unreachable_teacher_loses_nothing_is_tried_until_it_answers_and_logged_once(
    store, labeller_of, caplog: pytest.LogCaptureFixture
) -> None:
    def away(frame: LoggedFrame) -> Label:
        raise TeacherDownError(f"no answer in {time.monotonic():.6f} s")

    log(store, *range(3))
    teacher = Teacher(away)
    labeller = labeller_of(teacher)
    wait_until(lambda: labeller.snapshot().failed >= 6)
    snapshot = labeller.snapshot()
    assert snapshot.link == "down"
    assert snapshot.last_error.startswith("no answer in")
    assert len(store.unlabelled(9)) == 3
    assert caplog.text.count("no answer in") == 1  # when it begins, and not at each try
    teacher.reply = answer
    wait_until(lambda: labeller.snapshot().labelled == 3)
    teacher.reply = away
    log(store, 3)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().failed >= 12)
    assert caplog.text.count("no answer in") == 2


def test_waits_grow_to_a_cap_and_only_one_request_probes(store, labeller_of) -> None:
    teacher = Teacher(TeacherDownError("down"))
    log(store, *range(4))
    labeller_of(teacher, LabellerSettings(in_flight=1, poll_s=30, retry_s=0.04, max_retry_s=0.2))
    wait_until(lambda: len(teacher.times) >= 6)
    gaps = np.diff(teacher.times[:6])
    assert gaps[0] >= 0.02
    assert all(gaps[3:] >= 0.1)  # half of the cap, the rest is jitter


def test_one_frame_that_always_fails_does_not_block_the_others(store, labeller_of) -> None:
    def chokes(frame: LoggedFrame) -> Label:
        if frame.id == 1:
            raise ValueError("cannot digest")
        return answer(frame)

    log(store, *range(4))
    labeller = labeller_of(chokes)
    wait_until(lambda: labeller.snapshot().labelled == 3)
    assert labeller.snapshot().last_error == "ValueError: cannot digest"
    assert [frame.id for frame in store.unlabelled(9)] == [1]


@pytest.mark.parametrize("method", ["unlabelled", "put_label"])
def test_no_fault_of_the_store_ends_a_thread_or_loses_an_answer(
    store, labeller_of, monkeypatch, method
) -> None:
    teacher = Teacher()
    faults = iter([ValueError("a bug"), StoreLockedError("held")])
    real = getattr(store, method)

    def faulty(*arguments: object, **more: object) -> object:
        fault = next(faults, None)
        if fault is not None:
            raise fault
        return real(*arguments, **more)

    monkeypatch.setattr(store, method, faulty)
    log(store, 0)
    settings = LabellerSettings(poll_s=0.02, in_flight=1, retry_s=0.02, max_retry_s=0.05)
    labeller = labeller_of(teacher, settings)
    wait_until(lambda: labeller.snapshot().labelled == 1)
    assert teacher.asked == [1]
    assert labeller.snapshot().failed == 2


def test_stop_returns_promptly_while_the_teacher_hangs(store, labeller_of) -> None:
    hang = threading.Event()

    def hangs(frame: LoggedFrame) -> Label:
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
    log(store, 0)
    teacher = Teacher(TeacherDownError("down"))
    labeller = labeller_of(teacher, LabellerSettings(retry_s=60.0, max_retry_s=60.0))
    wait_until(lambda: labeller.snapshot().link == "down")
    assert labeller.snapshot().retry_in_s > 25
    assert labeller.stop(1.0)


# Teachers that answer, and of whose answers nothing is believed.


def test_a_teacher_of_which_nothing_is_believed_is_suspected_and_frames_wait(
    store, labeller_of
) -> None:
    teacher = Teacher(LabelRejected("label_constant", "2 m everywhere", teacher="fake 1"))
    log(store, *range(12))
    labeller = labeller_of(teacher)
    wait_until(lambda: labeller.snapshot().failed >= 20)
    state = labeller.snapshot()
    assert (state.link, state.suspect, state.refused) == ("down", True, 5)
    assert "the teacher fake 1 is suspect" in state.last_error
    assert "label_constant: 2 m everywhere" in state.last_error
    assert state.refused_in_a_row >= 20
    assert store.stats().rejected == {"label_constant": 5}
    teacher.reply = answer
    wait_until(lambda: labeller.snapshot().labelled == 7)
    assert not labeller.snapshot().suspect


def test_labels_that_the_store_cannot_keep_make_a_teacher_suspect_too(store, labeller_of) -> None:
    log(store, *range(8))
    empty = Label(np.full((4, 4), np.nan, np.float32), "fake", "1")
    labeller = labeller_of(lambda frame: empty)
    wait_until(lambda: labeller.snapshot().failed >= 8)
    assert store.stats().rejected == {"bad_label": 5}
    assert labeller.snapshot().link == "down"


def test_another_teacher_is_not_suspected_for_the_last_ones_sake(store, labeller_of) -> None:
    teacher = Teacher(LabelRejected("label_constant", teacher="fake 1"))
    log(store, *range(12))
    labeller = labeller_of(teacher, LabellerSettings(in_flight=1, retry_s=0.02))
    wait_until(lambda: labeller.snapshot().suspect)
    assert labeller.snapshot().refused == 5
    teacher.reply = LabelRejected("label_constant", teacher="fake 2")
    wait_until(lambda: labeller.snapshot().refused == 10)


def test_a_sick_teacher_beside_a_good_one_stays_suspected(store, labeller_of) -> None:
    def every_second(frame: LoggedFrame) -> Label:
        if len(teacher.asked) % 2:
            return answer(frame)
        raise LabelRejected("label_constant", "", teacher="fake 2")

    teacher = Teacher(every_second)
    log(store, *range(20))
    labeller = labeller_of(teacher, LabellerSettings(in_flight=1, retry_s=0.01, max_retry_s=0.01))
    wait_until(lambda: labeller.snapshot().labelled == 15)
    assert labeller.snapshot().refused == 5


def test_a_damaged_frame_does_not_end_the_wait_for_a_teacher_that_is_away(
    store, labeller_of
) -> None:
    asked: list[float] = []

    def ask(frame: LoggedFrame) -> Label:
        if frame.id % 2:
            raise LabelRejected("image_unreadable", "truncated", asked=False)
        asked.append(time.monotonic())
        raise TeacherDownError("down")

    log(store, *range(12))
    settings = LabellerSettings(in_flight=1, poll_s=30, retry_s=0.02, max_retry_s=60)
    labeller = labeller_of(ask, settings)
    wait_until(lambda: len(asked) >= 5)
    state = labeller.snapshot()
    assert state.link == "down"
    assert state.refused_in_a_row == 0
    assert asked[4] - asked[3] >= 0.08  # 8 times the first wait, half of it jitter


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")
def test_labelling_lets_the_stream_come_first(store, labeller_of) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found: list[int] = []
    log(store, 0)
    labeller = labeller_of(lambda frame: found.append(niceness()) or answer(frame))
    wait_until(lambda: labeller.snapshot().labelled == 1)
    assert found == [max(10, niceness())]


def test_a_teacher_without_an_answer_is_a_warning_unless_it_may_still_be_starting(caplog) -> None:
    unknown, starting, started = (
        RetryState(LabellerSettings(starting_s=seconds)) for seconds in (0.0, 3600.0, 3600.0)
    )
    started.answered()
    with caplog.at_level(logging.INFO, "tiekd_ros"):
        for state in (unknown, starting, started):
            state.fail(TeacherDownError("no answer"))
            assert state.state == "down"
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.INFO, logging.WARNING]


# All that waits, once: `tiekd label`.


def label_all(store, source: Callable[[LoggedFrame], Label]) -> tuple[dict[int, Exception], dict]:
    """Return the frames that kept failing, and the results by frame."""
    results: dict[int, LabelRejected | None] = {}
    labeller = Labeller(store, source, QUICK, results.__setitem__)
    return labeller.label_all(give_up_after=3), results


def test_all_that_waits_is_labelled_or_rejected_once_and_told_of(store) -> None:
    def picky(frame: LoggedFrame) -> Label:
        if frame.id == 2:
            raise LabelRejected("label_constant", "2 m everywhere")
        return answer(frame)

    assert label_all(store, answer) == ({}, {})
    log(store, *range(4))
    failing, results = label_all(store, picky)
    assert failing == {}
    assert sorted(results) == [1, 2, 3, 4]
    assert [frame for frame, rejection in results.items() if rejection] == [2]
    assert store.labelled_ids() == [1, 3, 4]


def test_a_teacher_that_is_away_or_suspect_ends_it_and_a_short_outage_does_not(store) -> None:
    def away_once(frame: LoggedFrame) -> Label:
        if len(teacher.asked) == 1:
            raise TeacherUnavailable("not there")
        return answer(frame)

    log(store, *range(9))
    teacher = Teacher(TeacherUnavailable("not there"))
    with pytest.raises(TeacherUnavailable, match="not there"):
        label_all(store, teacher)
    assert len(teacher.asked) <= 2 + 3
    with pytest.raises(SuspectTeacherError, match="fake 1 is suspect"):
        label_all(store, Teacher(LabelRejected("label_constant", teacher="fake 1")))
    assert store.stats().rejected == {"label_constant": 5}
    teacher = Teacher(away_once)
    assert label_all(store, teacher)[0] == {}
    assert len(store.labelled_ids()) == 4


def test_frames_that_fail_by_themselves_are_named_and_a_teacher_that_fails_on_all_raises(
    store,
) -> None:
    def chokes(frame: LoggedFrame) -> Label:
        if frame.id in (2, 3):
            raise ValueError(f"cannot digest {frame.id}")
        return answer(frame)

    log(store, *range(5))
    failing, results = label_all(store, chokes)
    said = {frame: str(error) for frame, error in failing.items()}
    assert said == {2: "cannot digest 2", 3: "cannot digest 3"}
    assert sorted(results) == [1, 4, 5]
    with pytest.raises(ValueError, match="broken"):
        label_all(store, Teacher(ValueError("broken")))


def test_a_fault_of_the_frame_log_ends_it(store, monkeypatch) -> None:
    def locked(*args: object) -> None:
        raise StoreLockedError("held")

    log(store, 0)
    monkeypatch.setattr(store, "put_label", locked)
    with pytest.raises(StoreLockedError):
        label_all(store, answer)


def test_a_cap_below_the_first_wait_is_refused() -> None:
    with pytest.raises(InvalidSettingError, match="max_retry_s 1 must be at least retry_s 2"):
        LabellerSettings(retry_s=2.0, max_retry_s=1.0)
