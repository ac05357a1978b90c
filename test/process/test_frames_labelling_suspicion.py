"""The labeller with teachers that answer, and of whose answers nothing is believed.

A test passes when such a teacher costs a few frames, not the frame log.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.labelling import TeacherDownError, answer, log
from tiekd_ros.framelog import LabelAnswer, LabellerSettings, LoggedFrame, RefusedLabel


def refusing(settings: list[str]) -> Callable[[LoggedFrame], LabelAnswer]:
    """Return a teacher whose labels are refused; its name and version are the list's last."""

    def ask(frame: LoggedFrame) -> LabelAnswer:
        raise RefusedLabel("label_constant", "2 m everywhere", teacher=settings[-1])

    return ask


def test_a_teacher_of_which_nothing_is_believed_is_suspected_and_frames_wait(
    store, labeller_of
) -> None:
    well = threading.Event()
    sick = refusing(["fake 1"])
    log(store, *range(12))
    labeller = labeller_of(lambda frame: answer(frame) if well.is_set() else sick(frame))
    wait_until(lambda: labeller.snapshot().failed >= 20)
    state = labeller.snapshot()
    assert (state.link, state.suspect, state.refused) == ("down", True, 5)
    assert "the teacher fake 1 is suspect" in state.last_error
    assert "label_constant: 2 m everywhere" in state.last_error
    assert state.refused_in_a_row >= 20
    assert store.stats().rejected == {"label_constant": 5}
    well.set()
    wait_until(lambda: labeller.snapshot().labelled == 7)
    assert not labeller.snapshot().suspect


def test_labels_that_the_store_cannot_keep_make_a_teacher_suspect_too(store, labeller_of) -> None:
    log(store, *range(8))
    empty = LabelAnswer(np.full((4, 4), np.nan, np.float32), None, "fake", "1")
    labeller = labeller_of(lambda frame: empty)
    wait_until(lambda: labeller.snapshot().failed >= 8)
    assert store.stats().rejected == {"bad_label": 5}
    assert labeller.snapshot().link == "down"


def test_another_teacher_is_not_suspected_for_the_last_ones_sake(store, labeller_of) -> None:
    names = ["fake 1"]
    log(store, *range(12))
    labeller = labeller_of(refusing(names), LabellerSettings(in_flight=1, retry_s=0.02))
    wait_until(lambda: labeller.snapshot().suspect)
    assert labeller.snapshot().refused == 5
    names.append("fake 2")
    wait_until(lambda: labeller.snapshot().refused == 10)


def test_a_sick_teacher_beside_a_good_one_stays_suspected(store, labeller_of) -> None:
    asked: list[int] = []

    def ask(frame: LoggedFrame) -> LabelAnswer:
        asked.append(frame.id)
        if len(asked) % 2:
            return answer(frame)
        raise RefusedLabel("label_constant", "", teacher="fake 2")

    log(store, *range(20))
    labeller = labeller_of(ask, LabellerSettings(in_flight=1, retry_s=0.01, max_retry_s=0.01))
    wait_until(lambda: labeller.snapshot().labelled == 15)
    assert labeller.snapshot().refused == 5


def test_a_damaged_frame_does_not_end_the_wait_for_a_teacher_that_is_away(
    store, labeller_of
) -> None:
    asked: list[float] = []

    def ask(frame: LoggedFrame) -> LabelAnswer:
        if frame.id % 2:
            raise RefusedLabel("image_unreadable", "truncated", asked=False)
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


def test_an_outage_is_logged_when_it_begins_and_not_at_each_try(
    store, labeller_of, caplog: pytest.LogCaptureFixture
) -> None:
    up = threading.Event()

    def away(frame: LoggedFrame) -> LabelAnswer:
        if up.is_set():
            return answer(frame)
        raise TeacherDownError(f"no answer in {time.monotonic():.6f} s")

    log(store, 0)
    labeller = labeller_of(away)
    wait_until(lambda: labeller.snapshot().failed >= 6)
    assert caplog.text.count("no answer in") == 1
    up.set()
    wait_until(lambda: labeller.snapshot().labelled == 1)
    up.clear()
    log(store, 1)
    labeller.notify()
    wait_until(lambda: labeller.snapshot().failed >= 12)
    assert caplog.text.count("no answer in") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="niceness is a thread's own on Linux only")
def test_labelling_lets_the_stream_come_first(store, labeller_of) -> None:
    found: list[int] = []

    def ask(frame: LoggedFrame) -> LabelAnswer:
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return answer(frame)

    log(store, 0)
    labeller = labeller_of(ask)
    wait_until(lambda: labeller.snapshot().labelled == 1)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert found == [max(10, own)]
