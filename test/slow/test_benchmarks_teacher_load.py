"""The robots and servers of the teacher's load benchmark, each a process of its own."""

from __future__ import annotations

import math
import time

import pytest
import teacher_load_models as models
from teacher_load import account_goal, labelled_by, run_load, run_soak
from teacher_load_robots import Robots, Server

from helpers.teachers import StubBackend, serving
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.framelog import LabellerSettings
from tiekd_ros.teacher.protocol import DepthAnswer

ROBOTS, SECONDS = 3, 1.0


def run_robots(url: str, robots: int = ROBOTS) -> list[dict[str, object]]:
    return Robots(url, robots, SECONDS, processes=1).finish().robots


def test_robots_account_for_every_frame_of_the_size_that_a_companion_asks_for():
    sides = set()

    class Noting(models.MarkingBatchBackend):
        def infer_batch(self, images, requests) -> list[DepthAnswer]:
            sides.update(request.max_depth_side for request in requests)
            return super().infer_batch(images, requests)

    backend = Noting(models.WaitingBackend(1.0, 1.0))
    with serving(backend, max_batch=4) as url:
        done = Robots(url, 5, SECONDS, processes=2).finish()
    assert [robot["number"] for robot in done.robots] == [0, 1, 2, 3, 4]
    for robot in done.robots:  # what waits at the end is labelled too
        assert robot["labelled"] == robot["frames"] == len(robot["labels"]) >= 4
        assert (robot["lost"], robot["twice"], robot["foreign"]) == (0, 0, 0)
    account = labelled_by(done, SECONDS)
    assert account_goal("", [account]).met
    # Two robots with the same marks would count as one frame labelled again.
    counts = backend.counts()
    assert (counts["labelled"], counts["again"]) == (account["frames"], 0)
    assert sides == {LabellerSettings().max_side}


def test_robots_notice_a_server_that_mixes_up_its_answers():
    class Mixed(models.MarkingBatchBackend):
        def infer_batch(self, images, requests) -> list[DepthAnswer]:
            return super().infer_batch(images, requests)[::-1]

    with serving(Mixed(models.WaitingBackend(20.0, 1.0)), max_batch=4) as url:
        robots = run_robots(url)
    assert sum(robot["foreign"] for robot in robots) > 0
    assert sum(robot["lost"] for robot in robots) > 0


def test_a_retried_frames_time_begins_with_its_first_request():
    class FailingFirst(models.MarkingBackend):
        begin = math.inf

        def infer(self, image, request) -> DepthAnswer:
            self.begin = min(self.begin, time.monotonic())
            if time.monotonic() < self.begin + 0.2:
                raise RuntimeError("out of memory")
            return super().infer(image, request)

    with serving(FailingFirst(models.InstantBackend())) as url:
        robots = run_robots(url, robots=1)
    # The labeller's first wait is half a second at least, and the label itself takes little.
    assert max(ms for _, ms in robots[0]["labels"]) > 500


def test_where_a_process_of_the_robots_breaks_the_others_end():
    with serving(StubBackend()) as url:
        robots = Robots(url, 2, 600.0, processes=2)
        robots.processes[0].process.kill()
        with pytest.raises(TiekdError, match="ended with -9"):
            robots.finish()
    assert robots.processes[1].process.exitcode is not None


def test_a_load_is_compared_with_batches_as_large_as_the_servers():
    sizes: list[int] = []

    class Noting(Server):
        def bare(self, seconds: float, batch: int = 1) -> float | None:
            sizes.append(batch)
            return super().bare(seconds, batch)

    with Noting("waiting:20,1", max_batch=4) as server:
        load = run_load(server, 4, seconds=2.0, bare_s=0.1, processes=1)
        soak = run_soak(server, 2, minutes=0.03, processes=1)
        assert server.counts()["labelled"] < soak["labels"]["labelled"]  # the account is kept short
    assert sizes == [1, 1, round(load["fill"])]
    assert load["batched"] > 0
