"""The stretches of `teacher_load.py`: load, restart and soak, on processes of their own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from teacher_load_processes import Done, Robots, Server

_SETTLING_SHARE = 0.2  # of a stretch, before what is counted begins
FLAT = 0.05
"""How far from its median a server's memory may be once it has settled."""
_WARM_UP_S = 120  # samples, one a second


class Labelled(NamedTuple):
    """What robots have to show at the end of a stretch."""

    rate: float  # labels a second
    p50_ms: float
    p99_ms: float
    worst_share: float  # the slowest robot's labels over the mean robot's
    frames: int
    labelled: int
    lost: int
    twice: int
    foreign: int  # labels with another frame's mark
    rejected: int  # frames given up, their label refused
    failed: int  # requests that the labellers had to repeat
    robots_cpu_ms: float  # processor time a label
    last_error: str


class Load(NamedTuple):
    """What came of so many robots on one server."""

    robots: int
    bare: float  # images a second of the model alone, one at a time, right before and after
    mean_batch: float
    bare_batched: float | None  # the same with batches of that size, rounded; None: it takes none
    labels: Labelled
    again: int  # images that the server labelled once more, after a request that broke off
    server_cpu_ms: float  # of all threads, a label
    rss_mib: float


class Recovery(NamedTuple):
    """A server killed and started again under load."""

    robots: int
    down_s: float
    after_s: list[float]  # from the server's return to each robot's next label
    periods_s: list[float]  # the longest wait that each robot had given itself meanwhile
    frames: int
    lost: int
    twice: int
    foreign: int
    rejected: int


class Soak(NamedTuple):
    """A server's memory over time."""

    minutes: float
    labels: int
    settled_mib: float  # median after the warm-up
    lowest: float  # over that median
    highest: float
    outside: int  # samples farther than FLAT from that median
    widest: float  # of the medians of ten seconds each: the largest distance from that median
    drift: float  # mean of the last third over the first third's after the warm-up, less 1
    samples_mib: list[float]  # one a second, warm-up included
    lost: int
    twice: int
    rejected: int


def run_load(
    server: Server, robots: int, *, seconds: float, bare_s: float, in_flight: int, processes: int
) -> Load:
    """Have so many robots labelled for so long; the model alone before and after."""
    before = server.bare(bare_s) or 0.0
    server.counts()
    cpu_s = server.cpu_s()
    done = Robots(server.url, robots, seconds, in_flight=in_flight, processes=processes).finish()
    cpu_s = server.cpu_s() - cpu_s
    counts = server.counts()
    mean_batch = counts["labelled"] / max(1, sum(counts["batches"].values()))
    after = server.bare(bare_s) or 0.0
    return Load(
        robots=robots,
        bare=(before + after) / 2,
        mean_batch=mean_batch,
        bare_batched=server.bare(bare_s, max(1, round(mean_batch))),
        labels=labelled_by(done, seconds),
        again=counts["again"],
        server_cpu_ms=1e3 * cpu_s / max(1, counts["labelled"]),
        rss_mib=server.rss_mib(),
    )


def labelled_by(done: Done, seconds: float) -> Labelled:
    """Sum up what robots did in a stretch of so many seconds, and the account of their frames."""
    found = done.robots
    labels = max(1, sum(len(robot["labels"]) for robot in found))
    begin, end = done.start + _SETTLING_SHARE * seconds, done.start + seconds
    trips = [[ms for at, ms in robot["labels"] if begin <= at < end] for robot in found]
    shares = [len(own) for own in trips]
    all_ms = [ms for own in trips for ms in own] or [float("nan")]
    return Labelled(
        rate=sum(shares) / (end - begin),
        p50_ms=float(np.percentile(all_ms, 50)),
        p99_ms=float(np.percentile(all_ms, 99)),
        worst_share=min(shares) / max(1e-9, float(np.mean(shares))),
        frames=_sum(found, "frames"),
        labelled=_sum(found, "labelled"),
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        foreign=_sum(found, "foreign"),
        rejected=_rejected(found),
        failed=_sum(found, "failed"),
        robots_cpu_ms=1e3 * done.cpu_s / labels,
        last_error=next((robot["last_error"] for robot in found if robot["last_error"]), ""),
    )


def run_recovery(
    model: str, robots: int, *, down_s: float, in_flight: int, processes: int
) -> Recovery:
    """Kill the server under load and start it again on its port after `down_s`."""
    with Server(model) as first:
        port = first.port
        load = Robots(first.url, robots, 3.0 + 4 * down_s, in_flight=in_flight, processes=processes)
        time.sleep(3.0)
        first.kill()
    killed = time.monotonic()
    time.sleep(down_s)
    with Server(model, port=port):
        back = time.monotonic()
        done = load.finish()
    found = done.robots
    return Recovery(
        robots=robots,
        down_s=back - killed,
        after_s=[_first_after(robot["labels"], back) - back for robot in found],
        periods_s=[_longest_wait(robot["waits"], killed, back) for robot in found],
        frames=_sum(found, "frames"),
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        foreign=_sum(found, "foreign"),
        rejected=_rejected(found),
    )


def run_soak(
    server: Server, robots: int, *, minutes: float, in_flight: int, processes: int
) -> Soak:
    """Watch the server's memory under steady load, a sample each second.

    The first fifth is warm-up, and at least two minutes where there is twice that: until every
    thread has had its largest batch. A sample is an instant, and says how many of a batch's
    arrays were in memory just then: medians of ten seconds tell what stays.
    """
    samples: list[float] = []
    load = Robots(server.url, robots, 60.0 * minutes, in_flight=in_flight, processes=processes)
    with ThreadPoolExecutor(1) as waiting:
        done = waiting.submit(load.finish)
        while not done.done():
            server.counts()  # or its account of every frame would grow with the run
            samples.append(server.rss_mib())
            time.sleep(1.0)
        found = done.result().robots
    warm_up = max(len(samples) // 5, min(_WARM_UP_S, len(samples) // 2))
    settled = samples[warm_up:]
    third = max(1, len(settled) // 3)
    middle = float(np.median(settled))
    tens = [float(np.median(settled[at : at + 10])) for at in range(0, len(settled), 10)]
    return Soak(
        minutes=minutes,
        labels=sum(len(robot["labels"]) for robot in found),
        settled_mib=middle,
        lowest=min(settled) / middle,
        highest=max(settled) / middle,
        outside=sum(abs(sample / middle - 1) > FLAT for sample in settled),
        widest=max(abs(ten / middle - 1) for ten in tens),
        drift=float(np.mean(settled[-third:]) / np.mean(settled[:third])) - 1,
        samples_mib=[round(sample, 1) for sample in samples],
        lost=_sum(found, "lost"),
        twice=_sum(found, "twice"),
        rejected=_rejected(found),
    )


def _sum(found: Sequence[dict[str, Any]], name: str) -> int:
    return sum(int(robot[name]) for robot in found)


def _rejected(found: Sequence[dict[str, Any]]) -> int:
    return sum(sum(robot["rejected"].values()) for robot in found)


def _first_after(labels: Sequence[Sequence[float]], moment: float) -> float:
    return min((at for at, _ in labels if at > moment), default=float("inf"))


def _longest_wait(waits: Sequence[Sequence[float]], begin: float, end: float) -> float:
    return max((left for at, left in waits if begin <= at <= end), default=0.0)
