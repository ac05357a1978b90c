"""The server's logs, as programs and people read them."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

from tiekd_ros.teacher.process import configure_logs


@pytest.fixture
def logs():
    """A stream that takes this process's logs, and a way to choose their format."""
    stream, root = io.StringIO(), logging.getLogger()
    own = logging.getLogger("tiekd_ros")
    before = (root.handlers[:], root.level, own.level)
    yield lambda form, level="info": configure_logs(form, level, stream) or stream
    root.handlers[:], level, own_level = before
    root.setLevel(level)
    own.setLevel(own_level)


def test_as_json_each_record_is_one_object_a_line(logs):
    stream, log = logs("json"), logging.getLogger("tiekd_ros.teacher.test")
    log.info("request", extra={"facts": {"code": "NOT_FOUND", "ms": 1.5}})
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("it broke:\n%s", "yes")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "info",
        "logger": "tiekd_ros.teacher.test",
        "message": "request",
        "code": "NOT_FOUND",
        "ms": 1.5,
    }
    assert second["message"] == "it broke:\nyes"
    assert second["exception"].endswith("ValueError: two\nlines")


def test_as_text_what_came_over_the_network_cannot_begin_a_line(logs):
    stream = logs("text")
    facts = {"details": "x\n2026-01-01T00:00:00.000Z info forged: line"}
    logging.getLogger("tiekd_ros.test").info("one\ntwo", extra={"facts": facts})
    (line,) = stream.getvalue().splitlines()
    assert " info tiekd_ros.test: one two details=" in line


def test_what_is_told_follows_the_level_and_other_libraries_only_warn(logs):
    stream = logs("text", "error")
    logging.getLogger("tiekd_ros.test").warning("not told")
    logging.getLogger("another").info("not told")
    logging.getLogger("another").warning("told")
    assert [line.rpartition(": ")[2] for line in stream.getvalue().splitlines()] == ["told"]
