"""Rounds that rest while someone wants the machine for something better."""

from __future__ import annotations

import os
import signal
import time

import pytest

from helpers.children import wait_until
from helpers.rounds import ENDLESS, House, worker_pids


@pytest.fixture
def house(state):
    house = House(state, ENDLESS)
    yield house
    house.runner.stop()
    house.store.close()


@pytest.fixture
def resting(house) -> House:
    """A house whose round rests in mid-training."""
    house.runner.start()
    wait_until(house.in_training)
    house.runner.pause()
    wait_until(lambda: house.runner.record.paused)
    return house


def test_a_round_rests_says_so_goes_on_and_can_be_stopped_resting(resting, state):
    assert resting.runner.busy
    step = resting.runner.record.step
    resting.runner.pause()  # twice does no harm
    time.sleep(0.05)  # rests are told in hundredths of a second
    resting.runner.resume()
    wait_until(lambda: not resting.runner.record.paused)
    wait_until(lambda: resting.runner.record.step > step)
    assert resting.runner.record.paused_seconds > 0
    assert [r.step for r in resting.seen if r.paused] == [step]
    resting.runner.pause()
    wait_until(lambda: resting.runner.record.paused)
    resting.runner.stop()
    assert not resting.runner.busy
    assert resting.states() == ["running"]  # as a killed process would leave it
    assert worker_pids(state) == []


def test_a_rest_ends_with_its_round(resting):
    os.kill(resting.worker_pid(), signal.SIGKILL)
    resting.runner.wait()
    assert (resting.runner.record.state, resting.runner.record.paused) == ("failed", False)
    resting.runner.resume()  # nobody is there to hear it
    resting.seen.clear()
    resting.runner.start()
    wait_until(resting.in_training)


def test_without_a_round_there_is_nothing_to_rest(house):
    house.runner.pause()
    house.runner.resume()
    assert house.runner.record is None
