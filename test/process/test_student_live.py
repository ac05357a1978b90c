"""The live student: exchanged between two frames, and never exchanged for something broken."""

import threading

import numpy as np
import pytest
import torch

from helpers.children import wait_until
from helpers.students import BINS, small_student
from tiekd_ros.student.live import LiveStudent
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.choosing import RuntimeFactory

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
SWAPS = 20


@pytest.fixture
def registry(tmp_path) -> StudentRegistry:
    """A registry with three versions, none live."""
    registry = StudentRegistry(tmp_path / "students")
    for seed in range(3):
        registry.add(small_student(seed))
    return registry


@pytest.fixture(params=["torch", "onnxruntime"])
def live(request, registry):
    if request.param == "onnxruntime":
        pytest.importorskip("onnxruntime")
    student = LiveStudent(registry, RuntimeFactory(torch.device("cpu"), request.param))
    yield student
    student.close()


def spoil(registry: StudentRegistry, version: str) -> None:
    (registry.root / version / "student.safetensors").write_bytes(b"spoiled")


def test_nothing_runs_before_a_student_is_live(live):
    live.load_pointer()
    assert live.runtime is None
    assert live.state.version is None
    assert live.state.error == ""


def test_the_pointer_says_what_to_load_first(registry, live):
    registry.promote("000002")
    live.load_pointer()
    assert live.runtime is not None
    assert (live.state.version, live.state.error, live.state.swaps) == ("000002", "", 0)
    assert not live.state.loading


def test_a_request_returns_at_once_and_the_student_changes_in_the_background(registry):
    changed = threading.Event()
    seen = []

    def note(state):
        seen.append((state.version, threading.current_thread().name))
        changed.set()

    live = LiveStudent(registry, RuntimeFactory(torch.device("cpu")), note)
    live.request("000001")
    assert changed.wait(30)
    assert seen == [("000001", "student-loader")]
    live.close()


def test_each_exchange_that_is_tried_has_a_start_and_an_end(registry):
    calls = []
    live = LiveStudent(
        registry,
        RuntimeFactory(torch.device("cpu"), "torch"),
        lambda state: calls.append(state.version),
        lambda: calls.append("start"),
    )
    live.request("000001")
    wait_until(lambda: len(calls) == 2)
    live.request("000009")  # there is none
    wait_until(lambda: len(calls) == 4)
    live.request("000001")  # runs: nothing to exchange
    wait_until(lambda: not live.state.error)
    live.request("000002")
    wait_until(lambda: len(calls) == 6)
    assert calls == ["start", "000001", "start", "000001", "start", "000002"]
    live.close()


def test_a_start_that_fails_prevents_no_exchange(registry):
    live = LiveStudent(
        registry, RuntimeFactory(torch.device("cpu"), "torch"), on_start=lambda: 1 / 0
    )
    live.request("000001")
    wait_until(lambda: live.state.version == "000001")
    live.request("000002")
    wait_until(lambda: live.state.version == "000002")
    live.close()


def test_no_frame_is_lost_while_students_are_exchanged(registry, live):
    registry.promote("000001")
    live.load_pointer()
    stop, frames, faults = threading.Event(), [], []

    def stream():
        while not stop.is_set():
            try:
                depth = live.runtime.predict(IMAGE).depth
                assert BINS.min_depth_m <= depth.min() <= depth.max() <= BINS.max_depth_m
                frames.append(live.state.version)
            except Exception as error:
                faults.append(error)

    thread = threading.Thread(target=stream)
    thread.start()
    for number in range(SWAPS):
        version = ("000002", "000003", "000001")[number % 3]
        live.request(version)
        wait_until(lambda wanted=version: live.state.version == wanted)
    stop.set()
    thread.join(30)
    assert faults == []
    assert live.state.swaps == SWAPS
    assert len(frames) >= SWAPS / 2
    assert set(frames) == {"000001", "000002", "000003"}


def test_the_latest_request_wins(registry, live):
    for _ in range(5):
        for version in ("000001", "000002", "000003"):
            live.request(version)
    wait_until(lambda: live.state.version == "000003" and not live.state.loading)
    assert live.state.swaps <= 14  # some of the 15 requests were never taken


@pytest.mark.parametrize("version", ["000002", "000009", "nonsense", ""])
def test_a_bad_version_leaves_the_old_one_running_and_says_why(registry, live, version):
    registry.promote("000001")
    live.load_pointer()
    spoil(registry, "000002")
    running = live.runtime
    live.request(version)
    wait_until(lambda: live.state.error)
    assert version in live.state.error
    assert live.runtime is running
    assert live.state.version == "000001"
    assert not live.state.loading
    live.request("000003")
    wait_until(lambda: live.state.version == "000003")
    assert live.state.error == ""


@pytest.mark.parametrize("fault", [OSError("disk gone"), ValueError("odd"), KeyError("bins")])
def test_no_fault_ends_the_loading_thread(registry, live, monkeypatch, fault):
    load = registry.load

    def faulty(version):
        if version == "000002":
            raise fault
        return load(version)

    monkeypatch.setattr(registry, "load", faulty)
    live.request("000002")
    wait_until(lambda: live.state.error and not live.state.loading)
    assert f"{type(fault).__name__}: {fault}" in live.state.error
    live.request("000003")
    wait_until(lambda: live.state.version == "000003")
    assert live.state.error == ""


def test_asking_for_the_running_version_again_ends_the_complaint_about_another(registry, live):
    registry.promote("000001")
    live.load_pointer()
    running = live.runtime
    live.request("000009")
    wait_until(lambda: live.state.error)
    live.request("000001")
    wait_until(lambda: not live.state.error)
    assert live.runtime is running


def test_a_damaged_live_version_falls_back_to_the_last_good_one(registry, live):
    for version in ("000001", "000002", "000003"):
        registry.promote(version)
    spoil(registry, "000003")
    live.load_pointer()
    assert live.state.version == "000002"
    assert "000003" in live.state.error
    assert registry.live() == "000003"  # a reader changes no pointer


def test_without_any_good_version_nothing_runs_and_the_reasons_are_told(registry, live):
    for version in ("000001", "000002"):
        registry.promote(version)
        spoil(registry, version)
    live.load_pointer()
    assert live.runtime is None
    assert "000001" in live.state.error
    assert "000002" in live.state.error


def test_a_damaged_pointer_is_told_and_does_not_stop_a_request(registry, live):
    (registry.root / "live.json").write_text("{")
    live.load_pointer()
    assert "live.json is damaged" in live.state.error
    live.request("000001")
    wait_until(lambda: live.state.version == "000001")


def test_closing_ends_the_loading_thread(registry):
    live = LiveStudent(registry, RuntimeFactory(torch.device("cpu")))
    live.close()
    assert not any(t.name == "student-loader" for t in threading.enumerate())
