"""Judge good and bad candidates by the gate: which would go live, and which are what they seem.

    python benchmarks/gate.py DIR [DIR ...] [--worlds 31,32] [--seeds 2] [--json FILE]

In each place, an RGB-D folder (docs/training.md) or a synthetic world, students follow each other
in rounds of a few steps. Of each two, the later is a candidate against the earlier, and the
reverse. From the later ones, bad candidates are made:

    noise       weights with normal noise
    collapse    depth drawn together around its mean
    near        better, but what is nearer than 2 m is a quarter too far
    forgets     later on the newer frames, worse on those that the incumbent knows
    lies        trained on labels of which a part is half as large again

The gate sees held-out frames, in stretches; what a candidate is really worth is measured on
others of the same parts of the place. A candidate is `better` where AbsRel is at least 3 % better
there, `worse` where it is worse at all; what lies between is not counted. An injected one counts
where the fault shows on these frames: AbsRel, near by, on the known part or the spread of depth is
worse by more than 5 %. Beside the gate stands its rule of before: the mean gain of AbsRel and RMSE
at least 0.5 %, neither more than 2 % worse.
"""

from __future__ import annotations

import argparse
import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scenes
import torch
from harness import Goal, Report, Row, parser, run

from tiekd_ros.core.images import DepthMap
from tiekd_ros.method.comparison import PairedErrors
from tiekd_ros.method.first_student import BASE_START, StudentSettings, first_input_size
from tiekd_ros.method.metrics import NEAR_M, FrameMetrics, frame_metrics
from tiekd_ros.method.samples import Sample, fit_sample
from tiekd_ros.rounds.gate import GateSettings, judge_against_incumbent
from tiekd_ros.student.bins import DepthBins
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.worlds import IndoorWorld, WorldSettings

_BLOCKS, _STRETCH = 9, 4
"""Blocks of a place, of which every third is held out; frames of a held-out stretch."""
_WORLD_FRAMES, _TURN_S = 150, 60.0
_BETTER, _FAULTY = 0.03, 0.05
_INJECTED = ("noise", "collapse", "near", "forgets", "lies")
_GAINS = ((0.03, 0.05), (0.05, 0.1), (0.1, 1.0))


@dataclass(frozen=True)
class Place:
    """Frames of a place in the order of time."""

    train: list[Sample]
    judged: list[Sample]
    """What the gate sees."""
    true: list[Sample]
    """What tells the candidate's worth."""


@dataclass(frozen=True)
class Errors:
    """A student's errors on the frames of a place."""

    judged: list[FrameMetrics]
    true: list[FrameMetrics]

    def mean(self, metric: str, part: slice = slice(None)) -> float:
        """Return a metric's mean over the true frames."""
        return float(np.nanmean([getattr(one, metric) for one in self.true[part]]))


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(1)
    report = Report("gate", options)
    places = [*map(str, options.scenes), *(f"world {seed}" for seed in options.worlds)]
    settings = {"iterations": options.iterations, "pixels": options.pixels}
    runs = report.experiment(
        [
            (
                {"place": place, "seed": seed, **settings},
                partial(judge_place, place, seed, settings),
            )
            for place, seed in itertools.product(places, range(options.seeds))
        ]
    )
    candidates = [candidate for made in runs for candidate in made["candidates"]]
    report.table("gate", "Candidates that go live", list(summary(candidates)))
    bad, better = ([c for c in candidates if c["bad"] is bad] for bad in (True, False))
    live = sum(c["live"] for c in bad)
    share = sum(c["live"] for c in better) / max(len(better), 1)
    report.goals += [
        Goal.at_most(f"of {len(bad)} bad candidates go live", live, 0, ""),
        Goal.at_least(f"of {len(better)} at least 3 % better go live", share, 0.9, ""),
    ]
    return report.finish()


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add("scenes", nargs="*", type=Path, metavar="DIR", help="RGB-D folders")
    add("--worlds", type=_numbers, default=[31, 32], help="seeds of synthetic worlds [31,32]")
    add("--seeds", type=int, help="repeats of each place [2; quick: 1]")
    add("--iterations", type=int, default=30, help="steps of a round [30]")
    add("--pixels", type=int, default=12288, help="input size [12288]")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads [all cores]")
    options = made.parse_args(argv)
    options.seeds = options.seeds or (1 if options.quick else 2)
    return options


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",") if word]


def judge_place(place: str, seed: int, settings: dict[str, int]) -> dict[str, Any]:
    """Have students follow each other in one place; return what the gate says of all pairs."""
    first = StudentSettings(pixels=settings["pixels"])
    found = load_place(place, first)
    torch.manual_seed(seed)
    start = scenes.starting_student(found.train, first, BASE_START)
    budget = {"iterations": settings["iterations"], "seed": seed}
    students = [start]
    for _ in range(5):
        students.append(trained(students[-1], found.train, budget))
    bins = start.card.bins
    depths = [predicted(student, found) for student in students]
    errors = [measured(depth, found, bins) for depth in depths]
    pairs = list(itertools.combinations(range(1, len(students)), 2))
    verdicts = []
    for earlier, later in pairs:
        for kind, before, after in (("later", earlier, later), ("earlier", later, earlier)):
            verdicts.append(judged(kind, errors[before], errors[after]))
    rng = np.random.default_rng(seed)
    liar = partial(lying, rng=rng)
    for earlier, later in pairs[::2]:
        before, good, poor = errors[earlier], errors[later], errors[0]
        faulty = {
            "noise": measured(predicted(noisy(students[later], rng), found), found, bins),
            "collapse": measured([collapsed(d) for d in depths[later]], found, bins),
            "near": measured([blind_near_by(d) for d in depths[later]], found, bins),
            "forgets": Errors(
                poor.judged[: len(poor.judged) // 2] + good.judged[len(poor.judged) // 2 :],
                poor.true[: len(poor.true) // 2] + good.true[len(poor.true) // 2 :],
            ),
        }
        verdicts += [judged(kind, before, each) for kind, each in faulty.items()]
    for earlier in range(1, len(students)):
        lied = trained(students[earlier], [liar(s) for s in found.train], budget)
        after = measured(predicted(lied, found), found, bins)
        verdicts.append(judged("lies", errors[earlier], after))
    return {"candidates": [verdict for verdict in verdicts if verdict is not None]}


def load_place(place: str, settings: StudentSettings) -> Place:
    """Return the frames of a folder or of `world N`, at the network's size."""
    if place.startswith("world "):
        frames = list(_views(int(place.removeprefix("world "))))
    else:
        frames = scenes.load_scene(Path(place))
    size = first_input_size(*frames[0].image.shape[:2], settings)
    samples = [fit_sample(f.image, f.depth, f.intrinsics, size) for f in frames]
    train, held_out = scenes.split_by_time(len(samples), "blocks")
    is_judged = [number // _STRETCH % 2 == 0 for number in range(len(held_out))]
    both = ([i for i, j in zip(held_out, is_judged, strict=True) if j is w] for w in (True, False))
    judged_, true = ([samples[i] for i in part] for part in both)
    return Place([samples[i] for i in train], judged_, true)


def _views(seed: int) -> Iterator[scenes.Frame]:
    world = IndoorWorld(WorldSettings(seed=seed))
    camera = world.default_intrinsics(160, 120)
    for number in range(_WORLD_FRAMES):
        view = world.render(round(number * _TURN_S / _WORLD_FRAMES * 1e9), 160, 120)
        yield scenes.Frame(view.image, view.depth, camera)


def trained(parent: Student, samples: list[Sample], plan: dict[str, int]) -> Student:
    """Return a student after a round from its parent."""
    student = replace(parent, network=copy.deepcopy(parent.network))
    seed = plan["seed"]
    scenes.fine_tune(student, samples, seed, {"iterations": plan["iterations"]}, has_parent=True)
    return student


def noisy(student: Student, rng: np.random.Generator) -> Student:
    """Return a student whose convolutions have noise of a tenth to a half of their spread."""
    network, share = copy.deepcopy(student.network), rng.uniform(0.1, 0.5)
    torch.manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() == 4:
                weight += torch.randn_like(weight) * weight.std() * share
    return replace(student, network=network)


def collapsed(depth: DepthMap) -> DepthMap:
    """Return depth of which ln is drawn to its mean by half."""
    log = np.log(depth)
    return np.exp(0.5 * log + 0.5 * log.mean()).astype(np.float32)


def blind_near_by(depth: DepthMap) -> DepthMap:
    """Return depth that is a quarter too far where it is nearer than 2 m."""
    return np.where(depth < NEAR_M, depth * np.float32(1.25), depth)


def lying(sample: Sample, rng: np.random.Generator) -> Sample:
    """Return a sample whose label is half as large again, for six in ten."""
    return replace(sample, depth=sample.depth * np.float32(1.5 if rng.random() < 0.6 else 1.0))


def predicted(student: Student, place: Place) -> list[DepthMap]:
    """Return depth of the judged frames, then of the true ones."""
    runtime = TorchRuntime(student)
    frames = (*place.judged, *place.true)
    return [runtime.predict(frame.image, confidence=False).depth for frame in frames]


def measured(depths: Sequence[DepthMap], place: Place, bins: DepthBins) -> Errors:
    """Return the errors of what `predicted` gave."""
    low, high = bins.min_depth_m, bins.max_depth_m
    frames = (*place.judged, *place.true)
    each = [frame_metrics(d, f.depth, low, high) for d, f in zip(depths, frames, strict=True)]
    known = [one for one in each if one is not None]
    assert len(known) == len(each), "a frame without depth"
    return Errors(known[: len(place.judged)], known[len(place.judged) :])


def judged(kind: str, before: Errors, after: Errors) -> dict[str, Any] | None:
    """Return what the gate, and its rule of before, say of a candidate; None: does not count."""
    gain = 1 - after.mean("abs_rel") / before.mean("abs_rel")
    half = slice(len(before.true) // 2)
    losses = [
        -gain,
        after.mean("near_abs_rel") / before.mean("near_abs_rel") - 1,
        after.mean("abs_rel", half) / before.mean("abs_rel", half) - 1,
        1 - after.mean("spread") / before.mean("spread"),
    ]
    if kind in _INJECTED:
        bad = max(losses) > _FAULTY
        if not bad:
            return None
    else:
        bad = gain < 0
        if not bad and gain < _BETTER:
            return None
    middle = len(before.judged) // 2
    known, new = (
        PairedErrors(after.judged[part], before.judged[part])
        for part in (slice(middle), slice(middle, None))
    )
    verdict = judge_against_incumbent(known, new, GateSettings())
    errors = known + new
    changes = [errors.ratio(metric) - 1 for metric in ("abs_rel", "rmse")]
    return {
        "kind": kind if kind in _INJECTED else "worse" if bad else "better",
        "bad": bad,
        "gain": round(gain, 4),
        "live": verdict.accepted,
        "live_by_means": -0.5 * sum(changes) >= 0.005 and max(changes) <= 0.02,
        "reason": verdict.reason,
    }


def summary(candidates: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row for each kind of candidate, the better ones by their gain."""
    groups = {"worse, of other rounds": [c for c in candidates if c["kind"] == "worse"]}
    groups |= {kind: [c for c in candidates if c["kind"] == kind] for kind in _INJECTED}
    for low, high in _GAINS:
        name = f"better by {low:.0%} to {high:.0%}" if high < 1 else f"better by {low:.0%} or more"
        better = (c for c in candidates if c["kind"] == "better")
        groups[name] = [c for c in better if low <= c["gain"] < high]
    for name, own in groups.items():
        live, by_means = (sum(c[key] for c in own) for key in ("live", "live_by_means"))
        yield {"candidate": name, "number": len(own), "live": live, "by means alone": by_means}


if __name__ == "__main__":
    run(main)
