"""Training beside inference: the worker's priority, and its pauses, over real pipes."""

from __future__ import annotations

import json
import os
import select
import signal
from pathlib import Path

import pytest

from helpers.children import PATIENCE_S, wait_until
from helpers.frames import small_plan, small_settings
from helpers.rounds import ENDLESS_RUN, events_of, start_worker, tell_worker, wait_for_event
from tiekd_ros.core.devices import cores, half_the_cores
from tiekd_ros.rounds.limits import default_threads
from tiekd_ros.rounds.round import run_round
from tiekd_ros.rounds.worker_process import spawn_worker

POLICIES = {"idle": (os.SCHED_IDLE, 19), "batch": (os.SCHED_BATCH, 10)}
FAR_LONGER_THAN_THE_BUDGET_S = 5.0


@pytest.fixture
def paused(state):
    """A worker that is paused in the middle of an endless training."""
    process = start_worker(state, small_settings(train=ENDLESS_RUN), "--with-parent")
    wait_for_event(process, "progress")
    tell_worker(process, "pause\n")
    assert wait_for_event(process, "paused")["paused"]
    yield process
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()


@pytest.mark.parametrize("scheduling", POLICIES)
def test_all_that_computes_gives_way_and_so_does_its_session(state, scheduling):
    plan = small_plan(train={**ENDLESS_RUN, "threads": 2}, resources={"scheduling": scheduling})
    policy, niceness = POLICIES[scheduling]
    with spawn_worker(state, plan, 3) as process:
        if scheduling == "batch":  # its computing threads are there
            wait_for_event(process, "progress")
        else:  # gets nothing of cores that are busy
            wait_until(lambda: os.sched_getscheduler(process.pid) == policy)
            wait_until(lambda: os.getpriority(os.PRIO_PROCESS, process.pid) == niceness)
        threads = {
            t: (os.sched_getscheduler(t), os.getpriority(os.PRIO_PROCESS, t))
            for t in map(int, os.listdir(f"/proc/{process.pid}/task"))
        }
        assert os.getsid(process.pid) == process.pid
        autogroup = Path(f"/proc/{process.pid}/autogroup")
        if autogroup.exists():
            assert autogroup.read_text().endswith(f"nice {niceness}\n")
        process.kill()
    gave_way = [thread for thread, found in threads.items() if found == (policy, niceness)]
    assert process.pid in gave_way
    assert len(threads) - len(gave_way) <= 1  # the one that reads from the parent may hurry


def test_no_step_is_done_from_pause_to_resume(paused):
    readable, _, _ = select.select([paused.stdout], [], [], 1.5)  # progress comes twice a second
    assert not readable
    for piece in ("resumes\nno\n\nre", "sume", "\n"):  # as a pipe may cut it
        tell_worker(paused, piece)
    over = wait_for_event(paused, "paused")
    assert not over["paused"]
    assert over["seconds"] >= 1.5
    first = wait_for_event(paused, "progress")["step"]
    assert wait_for_event(paused, "progress")["step"] > first


def test_pauses_do_not_count_as_training_time(state):
    train = {**ENDLESS_RUN, "seconds": 0.3}
    process = start_worker(state, small_settings(train=train), "--with-parent")
    tell_worker(process, "pause\n")  # it is paused before its first step
    wait_for_event(process, "paused")
    select.select([process.stdout], [], [], FAR_LONGER_THAN_THE_BUDGET_S)
    tell_worker(process, "resume\n")
    events = [json.loads(line) for line in process.stdout]
    assert events_of(process) == []  # closes its standard input, at which it would end
    assert process.returncode == 0
    (seconds,) = (e["seconds"] for e in events if e["event"] == "paused")
    assert seconds >= FAR_LONGER_THAN_THE_BUDGET_S
    assert events[-1]["train_seconds"] < seconds  # counted, the pause would be a part of them


@pytest.mark.parametrize("status", [3, -signal.SIGTERM])
def test_a_paused_worker_ends_with_its_parent_or_when_it_is_terminated(paused, status):
    if status == 3:
        paused.stdin.close()
    else:
        paused.terminate()
    assert paused.wait(PATIENCE_S) == status


def test_without_a_parent_nothing_pauses_it(state):
    process = start_worker(state, small_settings(train={"iterations": 2}))
    tell_worker(process, "pause\n")
    events = events_of(process)
    assert process.returncode == 0
    assert "paused" not in {e["event"] for e in events}


def test_a_round_can_pause_between_steps_and_between_judged_frames(state):
    seen: list[str] = []

    def pause() -> float:
        seen.append("pause")
        return 0.0

    plan = small_plan(train={"iterations": 3})
    run_round(state, plan, 1, lambda event: seen.append(event.get("stage", "")), pause)
    judging = seen.index("judging")
    # Labels that lie are looked for once, in two batches. Each of the 12 frames is judged, and the
    # confidence is fitted to each.
    assert (seen[:judging].count("pause"), seen[judging:].count("pause")) == (3 + 2, 24)


def test_training_leaves_half_of_the_cores_to_inference_and_takes_all_where_there_is_none():
    half, everything = default_threads(inference=True), default_threads(inference=False)
    assert (half, everything) == (half_the_cores(), cores())
