"""Simulate a robot's life: places, light, a dirty lens, a teacher that lies, a network that goes.

    pip install '.[student,docs]'
    python benchmarks/lifelong.py [--quick] [--real DIR DIR] [--seeds 2] [--json FILE]

A robot walks through synthetic flats: A by day and at dusk, B, A again, C, A with a dirty lens,
with a camera 0.3 m higher and with other furniture, then B again. With --real it lives through two
RGB-D folders (docs/training.md) instead: the first half of one, the other, the second half of the
first. Two images a second go the way of the product: frame log, teacher, checks and trust,
triggers, rounds in a worker process, gate, canary evaluation. Only the clock is simulated, so
training takes no time; what it made goes live 10 s later.

A share of the labels lies: half or twice as far, of another frame, without a block, with what is
far set to 5 m. For a while the network is gone, and labels come late.

Arms:

    never    the base student, calibrated to the first labels, and no round
    always   every round's student goes live: no gate, no canary evaluation
    ours     rounds by drift, and by period each 20 s; all else as shipped
    oracle   one student trained on all frames of the life with true depth, as it is at the end

Every image is scored before its label can be learnt from, by the student that was live when it
came (AbsRel against the true depth; the oracle's has seen the image). `exam` are views of each
place by day that no frame log has. A life and its labels are the same in all arms.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import scenes
import torch
from harness import Goal, Report, Row, parser, run

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage
from tiekd_ros.core.labels import LabelRejected
from tiekd_ros.core.state import StateFolder
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Observation
from tiekd_ros.method.first_student import BASE_START, StudentSettings, first_input_size
from tiekd_ros.method.metrics import frame_metrics
from tiekd_ros.method.samples import fit_sample
from tiekd_ros.rounds.canary import CanarySettings
from tiekd_ros.rounds.canary_monitor import CanaryMonitor
from tiekd_ros.rounds.drift import DriftDetector
from tiekd_ros.rounds.plan import RoundPlan, RoundSettings
from tiekd_ros.rounds.round_log import RoundKind, RoundRecord, RoundState
from tiekd_ros.rounds.runner import RoundRunner
from tiekd_ros.rounds.trainer import TrainSettings
from tiekd_ros.rounds.triggers import TriggerFacts, automatic_triggers, due_round
from tiekd_ros.student.checkpoint import Student
from tiekd_ros.student.live_depth import LiveStudentDepth
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.student.runtimes.torch_runtime import TorchRuntime
from tiekd_ros.teacher.label_source import LocalTeacher, TeacherLabelSource
from tiekd_ros.teacher.protocol import DepthAnswer, DepthRequest, TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge
from tiekd_ros.worlds import IndoorWorld, WorldSettings

ARMS = ("never", "always", "ours", "oracle")
_LIES = (0.0, 0.2)
_SIZE = (160, 120)
_STEP_NS = 500_000_000  # two images a second
_WALK_S = 41.0  # one turn of a flat; no multiple of the step, so that views differ each time
_GOES_LIVE_S = 10.0
_EXAM = 24  # views
_SEEDS = {"A": 31, "B": 32, "C": 7}


@dataclass(frozen=True)
class Stretch:
    """Some time in one place.

    Attributes:
        place: its name.
        images: how many.
        change: what is not as on the first day.
    """

    place: str
    images: int
    change: str = ""

    @property
    def name(self) -> str:
        """The place, with what is not as usual."""
        return f"{self.place} {self.change}".strip()


_DAYS = (
    Stretch("A", 100),
    Stretch("A", 40, "dusk"),
    Stretch("B", 100),
    Stretch("A", 40),
    Stretch("C", 80),
    Stretch("A", 50, "dirty lens"),
    Stretch("A", 60, "camera higher"),
    Stretch("A", 60, "furniture moved"),
    Stretch("B", 40),
)
_NETWORK_GONE = (0.36, 0.42)
"""Share of a life at which the network goes, and comes again."""


@dataclass(frozen=True)
class Image:
    """What the camera sees: uint8 RGB (H, W, 3), its true depth (H, W) in metres."""

    image: RgbImage
    depth: DepthMap
    intrinsics: Intrinsics | None


@dataclass(frozen=True)
class Life:
    """All images in the order of time, where each was taken, and the exam of each place."""

    images: list[Image]
    stretches: list[tuple[str, int, int]]
    """Name, first image, end."""
    exams: dict[str, list[Image]]


def main(argv: list[str] | None = None) -> int:
    options = read_options(argv)
    load_pyplot()  # before the minutes that come: it may be missing
    report = Report("lifelong", options)
    folders = tuple(map(str, options.real))
    settings = {"iterations": options.iterations, "days": options.days}
    keys = [
        {"arm": arm, "lies": lies, "seed": seed, "real": folders, **settings}
        for seed, lies, arm in itertools.product(range(options.seeds), options.lies, options.arms)
        if arm not in ("never", "oracle") or not lies
    ]
    calls = [(key, partial(live, **key)) for key in keys]
    runs = report.experiment(calls, workers=options.workers)
    rows = list(summary(runs))
    report.table("arms", "AbsRel of what the robot saw", rows)
    report.table("exams", "AbsRel in each place, by day, after each stretch", list(exams(runs)))
    report.goals += goals(runs)
    figure = report.path.with_suffix(".png")
    draw(runs, figure)
    code = report.finish()
    print(f"written: {figure}")
    return code


def read_options(argv: list[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    add = made.add_argument
    add("--real", nargs=2, type=Path, default=[], metavar="DIR", help="two RGB-D folders")
    add("--arms", default=",".join(ARMS), help=f"[{','.join(ARMS)}]")
    add("--lies", default="0,0.2", help="shares of labels that lie [0,0.2]")
    add("--seeds", type=int, help="lives [2; quick: 1]")
    add("--days", type=int, help="how often a life goes round [2; quick: 1]")
    add("--iterations", type=int, help="steps of a round [200; quick: 100]")
    add("--workers", type=int, default=2, help="arms at a time, each on one thread [2]")
    options = made.parse_args(argv)
    options.seeds = options.seeds or (1 if options.quick else 2)
    options.days = options.days or (1 if options.quick else 2)
    options.iterations = options.iterations or (100 if options.quick else 200)
    options.arms = options.arms.split(",")
    if unknown := set(options.arms) - set(ARMS):
        made.error(f"--arms {','.join(unknown)}: known are {', '.join(ARMS)}")
    options.lies = [float(word) for word in options.lies.split(",")]
    return options


@lru_cache(maxsize=1)
def synthetic_life(days: int, seed: int) -> Life:
    """Return a life in three synthetic flats."""
    flats = {name: WorldSettings(seed=s + 100 * seed, period_s=_WALK_S)
             for name, s in _SEEDS.items()}  # fmt: skip
    worlds = {name: IndoorWorld(settings) for name, settings in flats.items()}
    moved = IndoorWorld(flats["A"], furniture=1)
    higher = HigherCamera(flats["A"])
    images: list[Image] = []
    stretches = []
    for stretch in _DAYS * days:
        usual = worlds[stretch.place]
        world = {"camera higher": higher, "furniture moved": moved}.get(stretch.change, usual)
        first = len(images)
        for number in range(first, first + stretch.images):
            seen = _view(world, number * _STEP_NS)
            images.append(replace(seen, image=changed(seen.image, stretch.change)))
        stretches.append((stretch.name, first, len(images)))
    every_ns = round(_WALK_S * 1e9 / _EXAM)
    taken = {
        name: [_view(world, (number * every_ns) + _STEP_NS // 3) for number in range(_EXAM)]
        for name, world in worlds.items()
    }
    return Life(images, stretches, taken)


class HigherCamera(IndoorWorld):
    """A world whose camera was mounted 0.3 m higher."""

    def pose(self, time_ns: int) -> Any:
        """Return the pose, 0.3 m further up."""
        pose = super().pose(time_ns)
        pose[2, 3] += 0.3
        return pose


def _view(world: IndoorWorld, time_ns: int) -> Image:
    view = world.render(time_ns, *_SIZE)
    return Image(view.image, view.depth, world.default_intrinsics(*_SIZE))


def changed(image: RgbImage, change: str) -> RgbImage:
    """Return an image as it is at dusk, or through a dirty lens."""
    if change == "dusk":
        dark = 255 * (image / 255.0) ** 1.3 * np.array([0.5, 0.42, 0.36])
        return dark.astype(np.uint8)
    if change == "dirty lens":
        height, width = image.shape[:2]
        y, x = np.mgrid[:height, :width]
        smear = np.exp(-(((x - 0.65 * width) / 40) ** 2 + ((y - 0.4 * height) / 30) ** 2))
        blurred = cv2.GaussianBlur(image, (0, 0), 3.0)
        mixed = image + smear[..., None] * (0.6 * blurred + 80.0 - image)
        return np.clip(0.95 * mixed + 10, 0, 255).astype(np.uint8)
    return image


@lru_cache(maxsize=1)
def real_life(folders: tuple[str, str], days: int) -> Life:
    """Return a life in two RGB-D folders: every fifth image of each is kept for its exam."""
    images: list[Image] = []
    exam, seen = {}, []
    for folder in map(Path, folders):
        own = [Image(f.image, f.depth, f.intrinsics) for f in scenes.load_scene(folder)]
        exam[folder.name] = own[2::5][:_EXAM]
        seen.append([one for number, one in enumerate(own) if number % 5 != 2])
    first, other = seen
    middle = len(first) // 2
    name, other_name = (Path(folder).name for folder in folders)
    stretches = []
    parts = ((name, first[:middle]), (other_name, other), (f"{name} again", first[middle:]))
    for title, part in parts * days:
        stretches.append((title, len(images), len(images) + len(part)))
        images += part
    return Life(images, stretches, exam)


class LyingTeacher:
    """A teacher that knows the true depth of a life, and lies about a share of it.

    Args:
        life: the images, by the number that their stamp tells.
        share: of the labels that lie.
        seed: of which these are.
    """

    identity = TeacherIdentity("life", "1", metric=True)

    def __init__(self, life: Life, share: float, seed: int) -> None:
        self._images = life.images
        self._share = share
        self._seed = seed
        self.lies: set[int] = set()
        """Stamps that were lied about."""

    def infer(self, image: RgbImage, request: DepthRequest) -> DepthAnswer:
        """Return the depth of the image with this stamp, true or not."""
        number = request.stamp_ns // _STEP_NS - 1
        rng = np.random.default_rng([self._seed, number])
        depth = self._images[number].depth
        if rng.random() < self._share:
            self.lies.add(request.stamp_ns)
            depth = self._lie(number, rng)
        return DepthAnswer(depth, None, self.identity)

    def _lie(self, number: int, rng: np.random.Generator) -> DepthMap:
        true = self._images[number].depth
        kind = rng.integers(4)
        if kind == 0:
            return true * np.float32(rng.choice([0.5, 0.7, 1.5, 2.0]))
        if kind == 1:
            other = self._images[int(rng.integers(len(self._images)))].depth
            return cv2.resize(other, true.shape[::-1], interpolation=cv2.INTER_NEAREST)
        lie = true.copy()
        height, width = lie.shape
        if kind == 2:
            top, left = int(rng.integers(height // 2)), int(rng.integers(width // 2))
            lie[top : top + height // 2, left : left + width // 2] = np.nan
            return lie
        lie[lie > np.nanquantile(lie, 0.7)] = 5.0
        return lie


def life_of(real: tuple[str, ...], days: int, seed: int) -> Life:
    """Return the life that options name."""
    return real_life((real[0], real[1]), days) if real else synthetic_life(days, seed)


def live(
    arm: str, lies: float, seed: int, real: tuple[str, ...], iterations: int, days: int
) -> dict[str, Any]:
    """Live a life; return the errors of its images, and what happened.

    Args:
        arm: one of ARMS.
        lies: share of the labels that lie.
        seed: of the life, the lies and the training.
        real: two RGB-D folders, or none.
        iterations: steps of a round.
        days: how often the life goes round.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    life = life_of(tuple(real), days, seed)
    if arm == "oracle":
        return oracle(life, seed, iterations)
    with (
        tempfile.TemporaryDirectory(prefix="tiekd-life-") as folder,
        contextlib.ExitStack() as held,
    ):
        robot = Robot(life, arm, lies, seed, iterations, StateFolder(Path(folder)), held)
        errors = [robot.see(number) for number in range(len(life.images))]
        return {
            "abs_rel": errors,
            "stretches": life.stretches,
            "exams": robot.exams,
            "events": robot.events,
            "labels": robot.labels,
        }


class Robot:
    """The product but for ROS: what companion_node does, by a simulated clock.

    Args:
        life: what it will see.
        arm: `never`, `always` or `ours`.
        lies: share of the labels that lie.
        seed: of lies and training.
        iterations: steps of a round.
        state: its state folder, new.
        held: gets what ends all.
    """

    def __init__(
        self,
        life: Life,
        arm: str,
        lies: float,
        seed: int,
        iterations: int,
        state: StateFolder,
        held: contextlib.ExitStack,
    ) -> None:
        self._life = life
        self._arm = arm
        state.create()
        self._plan = RoundPlan(
            distill=RoundSettings(
                period_s=0.0 if arm == "never" else 20.0, drift=arm != "never", max_per_hour=0
            ),
            train=TrainSettings(iterations=iterations, seed=1000 * seed, threads=1, device="cpu"),
            student=StudentSettings(pixels=12288),
            canary=CanarySettings(enabled=arm == "ours"),
        )
        frames = FrameLogSettings(min_interval_s=0.4, block_s=4.0, min_sharpness=0.0)
        self._store = FrameStore(state.frames, frames)
        held.callback(self._store.close)
        self._registry = StudentRegistry(state.students)
        self._drift = DriftDetector(self._registry.held_out_abs_rel)
        self._teacher = LyingTeacher(life, lies, seed)
        judge = LabelJudge(on_compared=self._drift.add)
        student = LiveStudentDepth(self._registry)
        self._source = TeacherLabelSource(
            LocalTeacher(self._teacher), judge=judge, student_depth=student
        )
        self._runner = RoundRunner(state, self._store, self._plan, lambda record: None)
        held.callback(self._runner.stop)
        self._canary = CanaryMonitor(state, self._store, self._plan, lambda record: None)
        self._canary.teacher_name = self._teacher.identity.name
        held.callback(self._canary.stop)
        self._triggers = automatic_triggers(0.0)
        self._shown: TorchRuntime | None = None
        self._live_at_s = 0.0
        self.events: list[dict[str, Any]] = []
        self.exams: dict[str, dict[str, float]] = {}
        self.labels = {"believed": 0, "lies": 0, "lies believed": 0, "rejected": 0}

    def see(self, number: int) -> float | None:
        """Score an image, log it, have it labelled and do what is due; return its AbsRel."""
        now_s = (number + 1) * _STEP_NS / 1e9
        self._show(now_s)
        seen = self._life.images[number]
        error = None if self._shown is None else abs_rel(self._shown, seen)
        stamp_ns = (number + 1) * _STEP_NS
        self._store.add(Observation(seen.image, stamp_ns, "camera", seen.intrinsics))
        share = number / len(self._life.images)
        if not _NETWORK_GONE[0] <= share < _NETWORK_GONE[1]:
            self._label()
        self._start_due_round(now_s)
        self._watch(now_s)
        for name, _, end in self._life.stretches:
            if number + 1 == end:
                self._examine(name, end)
        return error

    def _show(self, now_s: float) -> None:
        """Have what was promoted go live when it is time."""
        live = self._registry.live()
        shown = None if self._shown is None else self._shown.card.version
        if live is not None and live != shown and now_s >= self._live_at_s:
            self._shown = TorchRuntime(self._registry.load(live))

    def _label(self) -> None:
        for frame in self._store.unlabelled(100):
            try:
                label = self._source.label(frame)
            except LabelRejected as rejection:
                self._store.reject(frame.id, rejection.reason)
                self.labels["rejected"] += 1
            else:
                self._store.put_label(frame.id, label)
                self.labels["believed"] += 1
                self.labels["lies believed"] += frame.stamp_ns in self._teacher.lies
        self.labels["lies"] = len(self._teacher.lies)

    def _start_due_round(self, now_s: float) -> None:
        live = self._registry.live()
        facts = TriggerFacts(
            now_s,
            self._plan,
            live is not None,
            lambda: self._store.stats().new_labels,
            self._store.labelled_span,
            self._runner.last_calibration,
            lambda: self._drift.found(live),
            self._runner.refused_in_a_row if self._arm == "ours" else lambda most: 0,
            charging=True,
        )
        due = due_round(self._triggers, facts)
        if due is None or self._canary.distrusts_rounds:
            return
        try:
            self._runner.start(due.reason, due.kind)
        except TiekdError:
            return  # too few frames as yet
        self._drift.restart()
        for trigger in self._triggers:
            trigger.on_start(now_s)
        self._runner.wait()
        record = self._runner.record
        assert record is not None
        if self._arm == "always" and record.state == RoundState.REFUSED and record.version:
            self._registry.promote(record.version, force=True)
            record = replace(record, state=RoundState.PROMOTED)
        self._note(now_s, record)

    def _note(self, now_s: float, record: RoundRecord) -> None:
        if record.state == RoundState.PROMOTED:
            is_first = record.kind is RoundKind.CALIBRATION
            self._live_at_s = now_s + (0.0 if is_first else _GOES_LIVE_S)
        self.events.append(
            {
                "image": round(now_s * 1e9) // _STEP_NS,
                "kind": str(record.kind),
                "state": str(record.state),
                "trigger": record.trigger,
                "reason": record.reason,
            }
        )

    def _watch(self, now_s: float) -> None:
        if self._arm != "ours":
            return
        before = self._registry.live()
        self._canary.check()
        self._canary.wait()
        if self._registry.live() != before:
            self._live_at_s = now_s
            event = {"kind": "canary", "state": "rolled_back", "trigger": "", "reason": ""}
            self.events.append({"image": round(now_s * 1e9) // _STEP_NS, **event})

    def _examine(self, name: str, end: int) -> None:
        live = self._registry.live()
        if live is None:
            return
        runtime = TorchRuntime(self._registry.load(live))
        self.exams[f"{end} {name}"] = {
            place: examined(runtime, exam) for place, exam in self._life.exams.items()
        }


def abs_rel(runtime: TorchRuntime, seen: Image) -> float | None:
    """Return AbsRel against the true depth, None where none lies in the student's range."""
    bins = runtime.card.bins
    depth = runtime.predict(seen.image, seen.depth.shape, confidence=False).depth
    found = frame_metrics(depth, seen.depth, bins.min_depth_m, bins.max_depth_m)
    return None if found is None else round(found.abs_rel, 4)


def examined(runtime: TorchRuntime, exam: Sequence[Image]) -> float:
    """Return the mean AbsRel over the views of an exam."""
    return float(np.mean([e for one in exam if (e := abs_rel(runtime, one)) is not None]))


def oracle(life: Life, seed: int, iterations: int) -> dict[str, Any]:
    """Train on all of a life with true depth, eight rounds' steps; return its errors."""
    first = StudentSettings(pixels=12288)
    size = first_input_size(*life.images[0].image.shape[:2], first)
    samples = [fit_sample(one.image, one.depth, one.intrinsics, size) for one in life.images]
    torch.manual_seed(seed)
    student: Student = scenes.starting_student(samples, first, BASE_START)
    scenes.fine_tune(student, samples, seed, {"iterations": 8 * iterations}, has_parent=True)
    runtime = TorchRuntime(student)
    return {
        "abs_rel": [abs_rel(runtime, one) for one in life.images],
        "stretches": life.stretches,
        "exams": {"end": {place: examined(runtime, e) for place, e in life.exams.items()}},
        "events": [],
        "labels": {},
    }


def summary(runs: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row for each arm and share of lies, means over the seeds."""
    for arm, lies in dict.fromkeys((r["arm"], r["lies"]) for r in runs):
        own = [r for r in runs if (r["arm"], r["lies"]) == (arm, lies)]
        row: Row = {"arm": arm, "lies": f"{lies:.0%}", "AbsRel": mean_error(runs, own)}
        row["last third"] = mean_error(runs, own, since=2 / 3)
        row["gap closed"] = gap_closed(runs, own)
        events = [event for r in own for event in r["events"] if event["kind"] == "training"]
        row["rounds"] = len(events) / len(own)
        row["live"] = sum(e["state"] == RoundState.PROMOTED for e in events) / len(own)
        for name in ("lies", "lies believed"):
            row[f"labels: {name}"] = sum(r["labels"].get(name, 0) for r in own) / len(own)
        yield row


def mean_error(
    runs: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], since: float = 0.0
) -> float:
    """Return mean AbsRel over the images that every arm of a life has depth of."""
    means = []
    for r in own:
        same = [np.array(o["abs_rel"], float) for o in runs if o["seed"] == r["seed"]]
        known = np.isfinite(np.stack(same)).all(axis=0)
        known[: round(since * len(known))] = False
        means.append(np.array(r["abs_rel"], float)[known].mean())
    return float(np.mean(means))


def gap_closed(runs: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]]) -> float:
    """Return how much of what the oracle gains on never learning an arm gains; NaN: not known."""
    never, best = ([r for r in runs if r["arm"] == arm] for arm in ("never", "oracle"))
    if not never or not best:
        return float("nan")
    worst = mean_error(runs, never)
    return (worst - mean_error(runs, own)) / (worst - mean_error(runs, best))


def exams(runs: Sequence[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row for each place and arm of the first life: AbsRel there, stretch by stretch."""
    for r in runs:
        if r["seed"] or r["arm"] in ("never", "oracle"):
            continue
        for place in next(iter(r["exams"].values())):
            row: Row = {"arm": r["arm"], "lies": f"{r['lies']:.0%}", "exam": place}
            for at, errors in r["exams"].items():
                name = at.partition(" ")[2]
                row[name if name not in row else f"{name}, image {at.split()[0]}"] = errors[place]
            yield row


def forgotten(run_: dict[str, Any]) -> float:
    """Return the most that AbsRel in a place became worse in a stretch elsewhere, relative.

    Places count once the robot has been there.
    """
    worst, been, before = 0.0, set(), None
    for at, errors in run_["exams"].items():
        here = next(p for p in errors if at.partition(" ")[2].split()[0] == p)
        if before is not None:
            worst = max([worst, *(errors[p] / before[p] - 1 for p in been - {here})])
        been.add(here)
        before = errors
    return worst


def goals(runs: Sequence[dict[str, Any]]) -> Iterator[Goal]:
    """Yield what came of what was promised."""
    ours = {lies: [r for r in runs if r["arm"] == "ours" and r["lies"] == lies]
            for lies in {r["lies"] for r in runs}}  # fmt: skip
    honest = ours.get(0.0) or []
    if not honest:
        return
    yield Goal.at_least("of the gap to the oracle closed", gap_closed(runs, honest), 0.6, "")
    most = max(map(forgotten, honest))
    yield Goal.at_most("lost in a place by a stretch elsewhere", most, 0.02, "")
    for lies, own in ours.items():
        if lies and own:
            cost = mean_error(runs, own) / mean_error(runs, honest) - 1
            yield Goal.at_most(f"cost of {lies:.0%} lies", cost, 0.03, "")


_STYLES = {
    "never": {"color": "tab:grey"},
    "always": {"color": "tab:red"},
    "ours": {"color": "tab:blue"},
    "oracle": {"color": "black", "linestyle": ":"},
}
_WINDOW = 15  # images


def load_pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError(f"{error}: pip install '.[student,docs]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot

    return pyplot


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the first life: AbsRel over time, with its stretches and what became of our rounds."""
    own = [r for r in runs if not r["seed"]]
    shares = sorted({r["lies"] for r in own})
    plt = load_pyplot()
    figure, panels = plt.subplots(
        len(shares), 1, figsize=(11, 3.4 * len(shares)), sharex=True, squeeze=False
    )
    for panel, lies in zip(panels[:, 0], shares, strict=True):
        for r in own:
            if r["lies"] == lies or r["arm"] in ("never", "oracle"):
                panel.plot(smooth(r["abs_rel"]), label=r["arm"], **_STYLES[r["arm"]])
            if r["arm"] == "ours" and r["lies"] == lies:
                mark(panel, r)
        panel.set_ylabel("AbsRel")
        panel.set_title(f"{lies:.0%} of the labels lie", loc="left", fontsize=10)
        for number, (name, first, end) in enumerate(own[0]["stretches"]):
            panel.axvspan(first, end, color="tab:olive", alpha=0.06 + 0.08 * (number % 2), lw=0)
            panel.text((first + end) / 2, 0.98, name.replace(" ", "\n"), ha="center", va="top",
                       fontsize=8, transform=panel.get_xaxis_transform())  # fmt: skip
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter("{x:g}")
        panel.set_xlim(0, own[0]["stretches"][-1][2])
        panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    panels[-1, 0].set_xlabel("image (two a second)")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def smooth(errors: Sequence[float | None]) -> Any:
    """Return the mean over the last images."""
    values = np.array(errors, float)
    return [np.nanmean(v) if np.isfinite(v := values[max(0, n - _WINDOW) : n + 1]).any() else np.nan
            for n in range(len(values))]  # fmt: skip


def mark(panel: Any, run_: dict[str, Any]) -> None:
    """Mark rounds at the top of a panel: live, refused or rolled back."""
    looks = {
        RoundState.PROMOTED: ("^", "tab:green", "goes live"),
        RoundState.REFUSED: ("x", "tab:orange", "refused"),
        "rolled_back": ("v", "tab:red", "rolled back"),
    }
    for state, (marker, colour, label) in looks.items():
        at = [event["image"] for event in run_["events"] if event["state"] == state]
        if at:
            panel.plot(at, [0.05] * len(at), marker, color=colour, label=label, markersize=6,
                       transform=panel.get_xaxis_transform())  # fmt: skip


if __name__ == "__main__":
    run(main)
