"""The robot's labeller, frame log and client, with a network that comes and goes.

A test passes when every frame that was logged ends with its own label, whatever happened to the
connection meanwhile: the frame log is what outlasts an outage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from helpers.children import wait_until
from helpers.proxy import TcpProxy, let_the_clock_jump
from helpers.stores import view
from helpers.teachers import StubBackend, ramp, serving
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Labeller, LabellerSettings, Observation
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.label_source import TeacherLabelSource

S = 1_000_000_000
PAUSE_S = 0.1


def own_label(image, request) -> np.ndarray:
    """Return depth with the frame's stamp in a corner: 0.1 m for each second."""
    depth = ramp(160, 120)
    depth[:12, :12] = 1 + request.stamp_ns / S / 10
    return depth


def log(store: FrameStore, *seconds: int) -> None:
    for second in seconds:
        assert store.add(Observation(view(second), second * S, "camera")).kept


def assert_own_labels(store: FrameStore, count: int) -> None:
    ids = store.labelled_ids()
    assert len(ids) == len(set(ids)) == count
    for frame in map(store.load, ids):
        assert frame.depth[2, 2] == pytest.approx(1 + frame.stamp_ns / S / 10, abs=0.03)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FrameStore]:
    settings = FrameLogSettings(min_interval_s=0.0, guard_share=0.0)
    with FrameStore(tmp_path / "frames.sqlite3", settings) as opened:
        yield opened


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    with serving(StubBackend(own_label)) as url, TcpProxy(int(url.rpartition(":")[2])) as between:
        yield between


@contextmanager
def labelling(store: FrameStore, proxy: TcpProxy) -> Iterator[Labeller]:
    """Label in the background, with waits that suit a test."""
    with TeacherClient(ClientSettings(url=proxy.url, timeout_s=1.0)) as client:
        patience = LabellerSettings(poll_s=0.05, retry_s=0.05, max_retry_s=0.2)
        labeller = Labeller(store, TeacherLabelSource(client).label, patience)
        labeller.start()
        try:
            yield labeller
        finally:
            client.close()
            labeller.stop(5.0)


def assert_outage_loses_nothing(store: FrameStore, proxy: TcpProxy) -> None:
    log(store, *range(1, 5))
    with labelling(store, proxy) as labeller:
        wait_until(lambda: labeller.snapshot().labelled == 4)
        proxy.refuse()
        log(store, *range(5, 11))
        wait_until(lambda: labeller.snapshot().link == "down")
        assert len(store.labelled_ids()) == 4
        proxy.pass_on()
        wait_until(lambda: labeller.snapshot().labelled == 10)
    assert_own_labels(store, 10)


def test_an_outage_loses_nothing_that_was_logged(store, proxy):
    assert_outage_loses_nothing(store, proxy)


def test_an_outage_loses_nothing_while_the_clock_jumps(store, proxy, monkeypatch):
    let_the_clock_jump(monkeypatch)
    assert_outage_loses_nothing(store, proxy)


def test_every_fault_in_turn_loses_no_frame_and_labels_none_as_another(store, proxy):
    faults: list[Callable[[], None]] = [
        proxy.refuse,
        lambda: proxy.cut(3_000),  # in the middle of an answer of 38 kB
        lambda: proxy.truncate(20_000),
        proxy.swallow,
        lambda: proxy.stall(3_000),
        lambda: proxy.delay(0.05),
    ]
    seconds = iter(range(1, 1000))
    logged = 0
    with labelling(store, proxy) as labeller:
        for fault in faults:
            fault()
            log(store, next(seconds), next(seconds), next(seconds))
            logged += 3
            labeller.notify()
            time.sleep(PAUSE_S)
            proxy.pass_on()
            log(store, next(seconds))
            logged += 1
            time.sleep(PAUSE_S)
        wait_until(lambda: labeller.snapshot().labelled == logged)
    assert_own_labels(store, logged)
