"""What the log says of a teacher that breaks again and again."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest

from helpers.strangers import refusal
from helpers.teachers import StubBackend, picture, serving
from tiekd_ros.core.images import encode_jpeg
from tiekd_ros.teacher import service
from tiekd_ros.teacher.service import RateLimitedErrorLog


def test_each_kind_is_told_whole_once_a_minute_and_summed_up_at_the_end(caplog):
    broken = StubBackend(ZeroDivisionError("first"))
    with caplog.at_level(logging.ERROR), serving(broken) as url:
        texts = {refusal(url, encode_jpeg(picture()))[1] for _ in range(4)}
        broken.answer = OSError("second")
        texts.add(refusal(url, encode_jpeg(picture()))[1])
    marks = {re.search(r"request (\w+) in its log", text)[1] for text in texts}
    whole = [record for record in caplog.records if record.exc_info]
    assert [record.exc_info[0] for record in whole] == [ZeroDivisionError, OSError]
    assert {re.search(r"request (\w+);", each.getMessage())[1] for each in whole} == marks
    (count,) = [record.getMessage() for record in caplog.records if not record.exc_info]
    assert re.fullmatch(r"the teacher broke on 3 more requests as on \w+ .ZeroDivision.*", count)


def test_the_next_minute_tells_it_again_and_how_many_there_were(caplog, monkeypatch):
    errors = RateLimitedErrorLog()
    with caplog.at_level(logging.ERROR):
        first = errors.log(ValueError("a"))
        assert errors.log(ValueError("b")) == first
        monkeypatch.setattr(service.time, "monotonic", lambda: float("inf"))
        assert errors.log(ValueError("c")) != first
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True]
    assert "1 more requests" in caplog.messages[1]


@pytest.mark.parametrize("times", [1, 5])
def test_labels_without_a_known_pixel_do_not_fill_the_log(caplog, times):
    blind = StubBackend(np.full((4, 4), np.nan, np.float32))
    with caplog.at_level(logging.ERROR), serving(blind) as url:
        for _ in range(times):
            assert refusal(url, encode_jpeg(picture()))[0] == "INTERNAL"
    assert len(caplog.records) == min(times, 2)
