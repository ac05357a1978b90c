"""The live student: exchanged between two frames, and never exchanged for something broken."""

import threading

import numpy as np
import pytest
import torch

from helpers.children import wait_until
from helpers.students import frames_while_exchanged, small_student
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


def test_the_pointer_says_what_to_load_first(registry, live):
    live.load_pointer()
    assert live.runtime is None
    assert (live.state.version, live.state.error) == (None, "")
    registry.promote("000002")
    live.load_pointer()
    assert live.runtime is not None
    assert (live.state.version, live.state.error, live.state.swaps) == ("000002", "", 0)
    assert not live.state.loading


def test_each_exchange_is_tried_in_the_background_and_has_a_start_and_an_end(registry):
    calls, threads = [], set()

    def note(what):
        calls.append(what)
        threads.add(threading.current_thread().name)
        raise ValueError("prevents no exchange")

    live = LiveStudent(
        registry,
        RuntimeFactory(torch.device("cpu"), "torch"),
        lambda state: note(state.version),
        lambda: note("start"),
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
    assert threads == {"student-loader"}
    live.close()
    assert not any(t.name == "student-loader" for t in threading.enumerate())


def test_no_frame_is_lost_while_students_are_exchanged(registry, live):
    registry.promote("000001")
    live.load_pointer()
    frames = frames_while_exchanged(live, IMAGE, SWAPS)
    assert live.state.swaps == SWAPS
    assert len(frames) >= SWAPS / 2
    assert set(frames) == {"000001", "000002", "000003"}


def test_the_latest_request_wins(registry, live):
    for _ in range(5):
        for version in ("000001", "000002", "000003"):
            live.request(version)
    wait_until(lambda: live.state.version == "000003" and not live.state.loading)
    assert live.state.swaps <= 14  # some of the 15 requests were never taken


def test_a_bad_version_leaves_the_old_one_running_and_says_why(registry, live):
    registry.promote("000001")
    live.load_pointer()
    spoil(registry, "000002")
    running = live.runtime
    for version in ("000002", "000009", "nonsense", ""):
        live.request(version)
        wait_until(lambda: live.state.error)
        assert version in live.state.error
        assert live.runtime is running
        assert live.state.version == "000001"
        assert not live.state.loading
        live.request("000001")  # runs: what was wrong with another one no longer matters
        wait_until(lambda: not live.state.error)
        assert live.runtime is running
    live.request("000003")
    wait_until(lambda: live.state.version == "000003")
    assert live.state.error == ""


def test_no_fault_ends_the_loading_thread(registry, live, monkeypatch):
    load = registry.load
    faults = [OSError("disk gone"), ValueError("odd"), KeyError("bins")]

    def faulty(version):
        if faults and version == "000002":
            raise faults[0]
        return load(version)

    monkeypatch.setattr(registry, "load", faulty)
    while faults:
        live.request("000002")
        said = f"{type(faults[0]).__name__}: {faults[0]}"
        wait_until(lambda wanted=said: wanted in live.state.error and not live.state.loading)
        del faults[0]
    live.request("000002")
    wait_until(lambda: live.state.version == "000002")
    assert live.state.error == ""


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
    (registry.root / "live.json").write_text("{")
    live.load_pointer()
    assert "live.json is damaged" in live.state.error
    live.request("000003")
    wait_until(lambda: live.state.version == "000003")
