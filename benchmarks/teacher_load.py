"""How many robots one teacher server carries, and what becomes of their frames.

    python benchmarks/teacher_load.py --quick           about 3 minutes on 2 cores
    python benchmarks/teacher_load.py                   about 8 minutes
    python benchmarks/teacher_load.py --soak 30         watches the server's memory for 30 minutes
    python benchmarks/teacher_load.py --network large --device cuda --robots 8 64

One server process, and processes in which robots run: each robot the companion's own labeller and
client over real gRPC, with a frame log in memory that always has frames waiting. Every label
carries a mark of the frame it was made of, so that the account at the end knows of each frame
whether its own label came, none, two, or another frame's.

Two teachers. `tiny`: a Depth Anything network with random weights at 168x126, a checkpoint that
the huggingface backend loads; it computes on one core, and shares the machine with the robots.
`waiting`: sleeps 20 ms a batch and 5 ms an image, as a server does whose network runs on a GPU.
Throughput is judged twice, against the same model in a loop in the server's process: one image
after the other, right before and after, as a server without batches would do at best; and, right
after, in batches of the size that the server reached, which no server can beat.

Overhead: a teacher that answers at once, one robot, one frame after the other.
Recovery: the server is killed under load and started again on its port; from its return to each
robot's next label, beside the longest wait that the robot had given itself.

Columns: images/s of all robots; bare = the model alone in a loop; fill = images a batch; batched =
the model alone in batches of that size; p50 and p99 from first asking for a label to having it,
retries and queue included; worst/mean = labels of the slowest robot over those of the mean;
rejected = frames given up since their label was refused; again = images that the server labelled
more than once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from depth_anything import SIZES, write_checkpoint
from harness import Goal, Report, Row, interleaved, number, parser, run, spread
from teacher_load_models import CAMERA, INSTANT, WAITING, jpegs, ramp
from teacher_load_robots import Done, Robots, Server
from tritonclient.grpc import service_pb2

from tiekd_ros.core.images import decode_image
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.protocol import (
    DepthAnswer,
    DepthRequest,
    TeacherIdentity,
    check_answer,
    read_answer,
    write_answer,
)

_ROBOTS = (1, 8, 32, 64)
_WAITING = f"{WAITING}:20,5"
_SOAK_ROBOTS = 8
_MANY = 8  # robots from which on the server is expected to be busy all the time

_SETTLING_SHARE = 0.2  # of a stretch, before what is counted begins
_WARM_UP_S = 120  # of a soak: samples, one a second
_FLAT = 0.05  # how far from its median a server's memory may be once it has settled
_LEAST_THROUGHPUT, _MOST_OVERHEAD_MS, _LEAST_SHARE = 0.9, 10.0, 0.5
_FIRST_LABEL_S = 0.5  # after its wait a robot still connects, asks, and gets its label
_ACCOUNT = ("lost", "twice", "foreign", "rejected")


def measure_overhead(report: Report, repeats: int) -> None:
    """Measure one robot that asks one frame after the other, and the parts of it alone."""
    image = jpegs()[0]
    height, width = decode_image(image).shape[:2]
    answer = DepthAnswer(ramp(1.0, 9.0, width, height))
    identity = TeacherIdentity("overhead", "1", metric=True)

    def written() -> bytes:
        return write_answer(answer, identity).SerializeToString()

    message = written()
    request = DepthRequest(image, CAMERA, 1, "camera")
    with Server(INSTANT) as server, TeacherClient(ClientSettings(url=server.url)) as client:
        calls: dict[str, Callable[[], object]] = {
            "round trip": lambda: client.infer(request),
            "server: JPEG to image": lambda: decode_image(image),
            "server: depth to message": written,
            "client: message to depth": lambda: read_answer(
                service_pb2.ModelInferResponse.FromString(message)
            ),
            "client: check the label": lambda: check_answer(answer, width, height),
        }
        times = interleaved(calls, repeats=repeats, warm_up=10)
    whole, *parts = [{"part": name, "ms": spread(ms)} for name, ms in times.items()]
    sent_kb, received_kb = len(image) / 1e3, len(message) / 1e3
    title = f"One frame of 640x480, ms, without a network; {sent_kb:.0f} kB there, "
    title += f"{received_kb:.0f} kB back"
    data = {"rows": [whole, *parts], "sent_kb": sent_kb, "received_kb": received_kb}
    report.table("overhead", title, [whole, *parts], data=data)
    note = ", ".join(f"{row['part']} {row['ms'].median:.1f}" for row in parts)
    name, ms = "gRPC and decoding, a frame of 640x480", whole["ms"].median
    note = f"from the robot's request to its checked label; {note}"
    report.goals.append(Goal.at_most(name, ms, _MOST_OVERHEAD_MS, "ms", note))


def run_load(server: Server, robots: int, *, seconds: float, bare_s: float, processes: int) -> Row:
    """Have so many robots labelled for so long; the model alone before and after."""
    before = server.bare(bare_s) or 0.0
    server.counts()
    cpu_s = server.cpu_s()
    done = Robots(server.url, robots, seconds, processes=processes).finish()
    cpu_s = server.cpu_s() - cpu_s
    counts = server.counts()
    mean_batch = counts["labelled"] / max(1, sum(counts["batches"].values()))
    after = server.bare(bare_s) or 0.0
    labels = labelled_by(done, seconds)
    bare, rate = (before + after) / 2, labels["images/s"]
    batched = server.bare(bare_s, max(1, round(mean_batch)))
    return {
        "robots": robots,
        "bare": bare,  # images a second of the model alone, right before and after
        "fill": mean_batch,
        "batched": batched,  # the same with batches of that size, rounded; None: it takes none
        **labels,
        "rate/bare": rate / bare,
        "rate/batched": rate / batched if batched else None,
        "again": counts["again"],  # images labelled once more, after a request that broke off
        "CPU ms server": 1e3 * cpu_s / max(1, counts["labelled"]),  # of all threads, a label
        "MiB": server.rss_mib(),
    }


def labelled_by(done: Done, seconds: float) -> Row:
    """Sum up what robots did in a stretch of so many seconds, and the account of their frames.

    `CPU ms robots` and `CPU ms server` are processor time a label, `foreign` labels with another
    frame's mark, `retried` requests that the labellers had to repeat.
    """
    found = done.robots
    labels = max(1, sum(len(robot["labels"]) for robot in found))
    begin, end = done.start + _SETTLING_SHARE * seconds, done.start + seconds
    trips = [[ms for at, ms in robot["labels"] if begin <= at < end] for robot in found]
    shares = [len(own) for own in trips]
    all_ms = [ms for own in trips for ms in own] or [float("nan")]
    counts = {
        name: sum(robot[name] for robot in found)
        for name in ("frames", "labelled", "lost", "twice", "foreign")
    }
    return {
        "images/s": sum(shares) / (end - begin),
        "p50 ms": float(np.percentile(all_ms, 50)),
        "p99 ms": float(np.percentile(all_ms, 99)),
        "worst/mean": min(shares) / max(1e-9, float(np.mean(shares))),
        **counts,
        "rejected": sum(sum(robot["rejected"].values()) for robot in found),
        "retried": sum(robot["failed"] for robot in found),
        "CPU ms robots": 1e3 * done.cpu_s / labels,
        "last error": next((r["last_error"] for r in found if r["last_error"]), None),
    }


def run_recovery(model: str, robots: int, *, down_s: float, processes: int) -> Row:
    """Kill the server under load and start it again on its port after `down_s`."""
    seconds = 3.0 + 4 * down_s
    with Server(model) as first:
        port = first.port
        load = Robots(first.url, robots, seconds, processes=processes)
        time.sleep(3.0)
        first.kill()
    killed = time.monotonic()
    time.sleep(down_s)
    with Server(model, port=port):
        back = time.monotonic()
        done = load.finish()
    return {
        "down_s": back - killed,
        "robots": [
            {
                "robot": str(index),
                "s to its next label": _first_after(robot["labels"], back) - back,
                "longest wait it had set itself, s": _longest_wait(robot["waits"], killed, back),
            }
            for index, robot in enumerate(done.robots)
        ],
        "labels": labelled_by(done, seconds),
    }


def _first_after(labels: Sequence[Sequence[float]], moment: float) -> float:
    return min((at for at, _ in labels if at > moment), default=float("inf"))


def _longest_wait(waits: Sequence[Sequence[float]], begin: float, end: float) -> float:
    return max((left for at, left in waits if begin <= at <= end), default=0.0)


def run_soak(server: Server, robots: int, *, minutes: float, processes: int) -> Row:
    """Watch the server's memory under steady load, a sample each second.

    The first fifth is warm-up, and at least two minutes where there is twice that: until every
    thread has had its largest batch. A sample is an instant, and says how many of a batch's
    arrays were in memory just then: medians of ten seconds tell what stays.
    """
    samples: list[float] = []
    seconds = 60.0 * minutes
    load = Robots(server.url, robots, seconds, processes=processes)
    with ThreadPoolExecutor(1) as waiting:
        done = waiting.submit(load.finish)
        while not done.done():
            server.counts()  # or its account of every frame would grow with the run
            samples.append(server.rss_mib())
            time.sleep(1.0)
    warm_up = max(len(samples) // 5, min(_WARM_UP_S, len(samples) // 2))
    settled = samples[warm_up:]
    third = max(1, len(settled) // 3)
    middle = float(np.median(settled))
    tens = [float(np.median(settled[at : at + 10])) for at in range(0, len(settled), 10)]
    return {
        "labels": labelled_by(done.result(), seconds),
        "MiB after warm-up": middle,
        "lowest": min(settled) / middle,
        "highest": max(settled) / middle,
        "samples outside": sum(abs(sample / middle - 1) > _FLAT for sample in settled),
        "% of the widest 10 s": 100 * max(abs(ten / middle - 1) for ten in tens),
        "% drift": 100 * (float(np.mean(settled[-third:]) / np.mean(settled[:third])) - 1),
        "samples_mib": [round(sample, 1) for sample in samples],
    }


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    return _soak(options) if options.soak else _load(options)


def _options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__ or "")
    add = made.add_argument
    add("--robots", type=int, nargs="+", default=_ROBOTS, metavar="N", help=f"how many {_ROBOTS}")
    add("--robot-processes", type=int, default=4, metavar="N", help="with all the robots [4]")
    add("--network", choices=SIZES, default="tiny", help="of the teacher [tiny]")
    add("--device", default="cpu", help="of the network: cpu, cuda or cuda:N [cpu]")
    add("--threads", type=int, default=1, help="of the network on a CPU [1]")
    add("--max-batch", type=int, default=8, help="of the server [8]")
    add("--soak", type=float, metavar="MINUTES", help="only watch the memory")
    return made.parse_args(argv)


def _load(options: argparse.Namespace) -> int:
    report = Report("teacher_load", options)
    measure_overhead(report, 100 if options.quick else 400)
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), options.network)
        loads = _stretches(f"huggingface:{folder}", options, options.robots)
    title = f"Robots on one server, {options.network} network on {options.device}"
    _report_loads(report, "network", title, options.network, loads)
    loads = _stretches(_WAITING, options, [n for n in options.robots if n >= _MANY])
    title = f"Robots on one server, {_WAITING} ms, no core busy"
    _report_loads(report, "waiting", title, WAITING, loads)
    down_s = 4.0 if options.quick else 10.0
    found = run_recovery(_WAITING, _SOAK_ROBOTS, down_s=down_s, processes=options.robot_processes)
    title = f"Server killed, and back {found['down_s']:.1f} s later"
    report.table("recovery", title, found["robots"], data=found)
    report.goals.append(_recovery_goal(found))
    return report.finish()


def _stretches(model: str, options: argparse.Namespace, robots: Sequence[int]) -> list[Row]:
    bare_s, base_s, robot_s = (2.0, 4.0, 0.2) if options.quick else (6.0, 20.0, 0.5)
    kind = {"device": options.device, "threads": options.threads, "max_batch": options.max_batch}
    with Server(model, **kind) as server:
        return [
            run_load(
                server, count, bare_s=bare_s, processes=options.robot_processes,
                # Long enough for a few labels of each robot, and a few of their round trips.
                seconds=base_s + robot_s * count,
            )
            for count in robots
        ]  # fmt: skip


def _report_loads(report: Report, key: str, title: str, teacher: str, loads: Sequence[Row]) -> None:
    report.table(key, title, loads)
    name = f"{teacher}: throughput over the bare model in"
    again = sum(load["again"] for load in loads)
    most = max(loads, key=lambda load: load["robots"], default=None)
    report.goals += [
        throughput_goal(f"{name} a loop", loads, "rate/bare"),
        throughput_goal(f"{name} as large batches", loads, "rate/batched"),
        account_goal(f"{teacher}: ", loads, f"labelled again after a retry: {again}"),
        Goal.at_least(
            f"{teacher}: the worst robot's share", most and most["worst/mean"], _LEAST_SHARE,
            "x the mean", f"of {most['robots']} robots" if most else "",
        ),
    ]  # fmt: skip


def _soak(options: argparse.Namespace) -> int:
    report = Report("teacher_soak", options)
    with Server(f"{WAITING}:5,2", max_batch=options.max_batch) as server:
        found = run_soak(
            server, _SOAK_ROBOTS, minutes=options.soak, processes=options.robot_processes
        )
    own = {name: count for name, count in found["labels"].items() if name in _ACCOUNT}
    row = {**found, **own, "labels": str(found["labels"]["labelled"])}
    del row["samples_mib"]
    report.table("soak", f"The server's memory over {options.soak:g} minutes", [row], data=found)
    report.goals.append(soak_goal(found, options.soak))
    return report.finish()


def throughput_goal(name: str, loads: Sequence[Row], ratio: str) -> Goal:
    ratios = {load["robots"]: load[ratio] for load in loads if load["robots"] >= _MANY}
    known = {robots: found for robots, found in ratios.items() if found}
    each = ", ".join(f"{robots} robots: {found:.2f} x" for robots, found in known.items())
    return Goal.at_least(name, min(known.values(), default=None), _LEAST_THROUGHPUT, note=each)


def account_goal(prefix: str, labels: Sequence[Row], note: str = "") -> Goal:
    """Return the goal that every frame has its own label, once."""
    counts = [sum(own[name] for own in labels) for name in _ACCOUNT]
    measured = f"{', '.join(map(str, counts))} of {sum(own['frames'] for own in labels)}"
    name = f"{prefix}frames without their own label, with two, with another's, rejected"
    return Goal(name, "0, 0, 0, 0", measured, not any(counts), note)


def _recovery_goal(found: Row) -> Goal:
    after = [robot["s to its next label"] for robot in found["robots"]]
    waits = [robot["longest wait it had set itself, s"] for robot in found["robots"]]
    beyond = max(a - wait for a, wait in zip(after, waits, strict=True))
    account = account_goal("", [found["labels"]])
    return Goal(
        "next label after the server's return",
        f"within the robot's wait + {_FIRST_LABEL_S:g} s",
        f"median {number(float(np.median(after)))} s, worst {number(max(after))} s",
        beyond <= _FIRST_LABEL_S and bool(account.met),
        f"{len(after)} robots, waits up to {number(max(waits))} s; "
        f"{', '.join(_ACCOUNT)}: {account.measured}",
    )


def soak_goal(found: Row, minutes: float) -> Goal:
    widest, labels = found["% of the widest 10 s"], found["labels"]
    account = account_goal("", [labels])
    return Goal(
        f"memory over {minutes:g} minutes, after the warm-up",
        f"medians of 10 s within {_FLAT:.0%} of the median, no frame lost, twice or rejected",
        f"{widest:.1f}%, drift {found['% drift']:+.1f}%",
        widest <= 100 * _FLAT and bool(account.met),
        f"{found['MiB after warm-up']:.0f} MiB, single samples {found['lowest']:.3f} to "
        f"{found['highest']:.3f}, {found['samples outside']} beyond; "
        f"{', '.join(_ACCOUNT)}: {account.measured}",
    )


if __name__ == "__main__":
    run(main)
