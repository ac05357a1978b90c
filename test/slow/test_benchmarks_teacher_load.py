"""The load benchmark of the teacher: its account of frames tells the truth, and it runs."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from helpers.benchmarks import benchmark_module
from helpers.children import run_benchmark
from helpers.teachers import StubBackend, serving
from tiekd_ros.core.images import shrink_map
from tiekd_ros.framelog import LabellerSettings
from tiekd_ros.teacher.protocol import DepthAnswer

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROBOTS, SECONDS = 3, 1.0


@pytest.fixture(scope="module")
def models():
    return benchmark_module("teacher_load_models")


@pytest.fixture
def frame_log(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("teacher_load_models", "teacher_load_robots"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from teacher_load_robots import FrameLog

    return FrameLog(robot=5, images=[b""], window=3)


def run_robots(url: str, robots: int = ROBOTS) -> list[dict[str, object]]:
    asked = {"url": url, "first": 0, "robots": robots, "seconds": SECONDS}
    asked |= {"in_flight": 2, "window": 4}
    done = run_benchmark("teacher_load_robots.py", json.dumps(asked))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["robots"]


def test_a_mark_survives_the_wire_and_a_smaller_label(models):
    for stamp in (
        models.stamp_of(0, 1),
        models.stamp_of(63, 5000),
        models.stamp_of(511, 2**18 - 1),
    ):
        depth = models.ramp(1.0, 9.0)
        models.write_mark(depth, stamp)
        received = depth.astype(np.float16).astype(np.float32)
        assert models.read_mark(received) == stamp
        assert models.read_mark(shrink_map(received, 160)) == stamp


def test_labels_of_another_frame_and_second_ones_are_noticed(models, frame_log):
    def label(robot: int, frame: int) -> np.ndarray:
        depth = models.ramp(1.0, 9.0)
        models.write_mark(depth, models.stamp_of(robot, frame))
        return depth

    frame_log.stop_logging()
    frame_log.put_label(1, label(5, 1), "teacher", "1")
    frame_log.put_label(2, label(5, 1), "teacher", "1")  # frame 2 got the label of frame 1
    assert not frame_log.is_done()
    frame_log.put_label(3, label(4, 3), "teacher", "1")  # and frame 3 that of another robot
    assert frame_log.is_done()
    account = frame_log.account()
    assert (account["frames"], account["labelled"]) == (3, 1)
    assert (account["lost"], account["twice"], account["foreign"]) == (2, 1, 1)


def test_a_refused_frame_is_not_lost(models, frame_log):
    frame_log.stop_logging()
    for frame in (1, 2, 3):
        frame_log.reject(frame, "teacher_refused")
    account = frame_log.account()
    assert (account["lost"], account["rejected"]) == (0, {"teacher_refused": 3})


def test_robots_account_for_every_frame(models):
    backend = models.marking(models.WaitingBackend(1.0, 1.0))
    with serving(backend, max_batch=4) as url:
        robots = run_robots(url)
    assert len(robots) == ROBOTS
    for robot in robots:
        assert robot["labelled"] == robot["frames"] == len(robot["labels"]) > 4
        assert (robot["lost"], robot["twice"], robot["foreign"]) == (0, 0, 0)
    counts = backend.counts()
    assert counts["labelled"] == sum(robot["frames"] for robot in robots)
    assert counts["again"] == 0


def test_robots_notice_a_server_that_mixes_up_its_answers(models):
    class Mixed(models.MarkingBatchBackend):
        def infer_batch(self, images, requests) -> list[DepthAnswer]:
            return super().infer_batch(images, requests)[::-1]

    with serving(Mixed(models.WaitingBackend(20.0, 1.0)), max_batch=4) as url:
        robots = run_robots(url)
    assert sum(robot["foreign"] for robot in robots) > 0
    assert sum(robot["lost"] for robot in robots) > 0


@pytest.mark.slow
def test_a_short_soak_gives_its_table_and_its_goal(tmp_path):
    done = run_benchmark("teacher_load.py", "--soak", "0.05", "--output", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "teacher_soak.json").read_text())
    assert results["tables"]["soak"]["labels"] > 0
    assert results["tables"]["soak"]["settled_mib"] > 10
    assert results["goals"][0]["wanted"].startswith("medians of 10 s within 5% of the median, no")


@pytest.mark.parametrize(
    "wrong", [{}, {"lost": 1}, {"twice": 1}, {"rejected": 1}, {"widest": 0.06}]
)
def test_a_soak_meets_its_goal_where_the_memory_stays_and_every_frame_is_accounted_for(
    models, monkeypatch, wrong
):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from teacher_load import _soak_goal
    from teacher_load_runs import Soak

    good = Soak(30.0, 1000, 175.0, 0.9, 1.01, 6, 0.02, 0.01, [], 0, 0, 0)
    assert _soak_goal(good._replace(**wrong)).met is not bool(wrong)


def test_a_retried_frames_time_begins_with_its_first_request(models):
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


def test_robots_ask_for_labels_of_the_size_that_a_companion_asks_for(models):
    sides = set()

    class Noting(models.MarkingBatchBackend):
        def infer_batch(self, images, requests) -> list[DepthAnswer]:
            sides.update(request.max_depth_side for request in requests)
            return super().infer_batch(images, requests)

    with serving(Noting(models.WaitingBackend(1.0, 1.0)), max_batch=4) as url:
        run_robots(url, robots=1)
    assert sides == {LabellerSettings().max_side}


def test_rejected_frames_are_told_and_miss_the_goal(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from teacher_load import _account_goal
    from teacher_load_runs import Labelled, Load

    def load(rejected: int) -> Load:
        labels = Labelled(**dict.fromkeys(Labelled._fields, 0) | {"frames": 9})
        own = labels._replace(rejected=rejected)
        return Load(**dict.fromkeys(Load._fields, 0) | {"labels": own})

    assert _account_goal("tiny", [load(0)]).met
    goal = _account_goal("tiny", [load(2)])
    assert not goal.met
    assert goal.measured == "0, 0, 0, 2 of 9"


def test_a_soak_keeps_the_servers_account_short(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)  # the server is a script beside its parts
    from teacher_load_processes import Server
    from teacher_load_runs import run_soak

    with Server("waiting:5,2") as server:
        found = run_soak(server, 2, minutes=0.05, in_flight=2, processes=2)
        assert server.counts()["labelled"] < found.labels


def test_robots_of_several_processes_give_one_account(models, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    from teacher_load_processes import Robots
    from teacher_load_runs import labelled_by

    backend = models.marking(models.WaitingBackend(1.0, 1.0))
    with serving(backend, max_batch=4) as url:
        done = Robots(url, 5, SECONDS, in_flight=2, processes=3).finish()
    account = labelled_by(done, SECONDS)
    assert [robot["number"] for robot in done.robots] == [0, 1, 2, 3, 4]
    assert min(robot["labelled"] for robot in done.robots) >= 4  # what waits is labelled too
    assert (account.lost, account.twice, account.foreign, account.rejected) == (0, 0, 0, 0)
    # Two robots with the same marks would count as one frame labelled again.
    counts = backend.counts()
    assert (counts["labelled"], counts["again"]) == (account.frames, 0)


def test_a_process_of_robots_that_breaks_is_no_success(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    from teacher_load_processes import Robots

    with serving(StubBackend()) as url:
        robots = Robots(url, 2, 30.0, in_flight=2, processes=2)
        for process in robots._processes:
            process.kill()
        with pytest.raises(RuntimeError, match="ended with -9"):
            robots.finish()


def test_throughput_is_judged_by_batches_as_large_as_the_servers(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    from teacher_load import _throughput_goal
    from teacher_load_processes import Server
    from teacher_load_runs import run_load

    sizes: list[int] = []

    class Noting(Server):
        def bare(self, seconds: float, batch: int = 1) -> float | None:
            sizes.append(batch)
            return super().bare(seconds, batch)

    with Noting("waiting:20,1", max_batch=4) as server:
        load = run_load(server, 4, seconds=2.0, bare_s=0.1, in_flight=2, processes=2)
    assert sizes == [1, 1, round(load.mean_batch)]
    assert load.bare_batched > 0
    labels = load.labels._replace(rate=50.0)
    judged = load._replace(robots=8, labels=labels, bare=40.0, bare_batched=100.0)
    assert _throughput_goal("tiny", [judged], "bare").measured == "1.25 x"
    by_batches = _throughput_goal("tiny", [judged], "bare_batched")
    assert (by_batches.measured, by_batches.met) == ("0.50 x", False)
    without = judged._replace(bare_batched=None)  # the teacher takes no batches
    assert _throughput_goal("tiny", [without], "bare_batched").measured == "-"


def test_where_one_process_of_the_robots_breaks_the_others_end(models, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    from teacher_load_processes import Robots

    with serving(models.marking(models.WaitingBackend(1.0, 1.0)), max_batch=4) as url:
        robots = Robots(url, 2, 600.0, in_flight=2, processes=2)
        robots._processes[0].kill()
        with pytest.raises(RuntimeError, match="ended with -9"):
            robots.finish()
    assert robots._processes[1].poll() is not None
