"""`tiekd train`: from a data set to a student, on one or several devices."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tiekd_ros.core import Closing
from tiekd_ros.core.state import StateFolder
from tiekd_ros.evaluation.protocol import protocol_for
from tiekd_ros.method.first_student import BASE_START, RANDOM_START
from tiekd_ros.method.samples import AugmentSettings
from tiekd_ros.student.checkpoint import CheckpointError, Student, load_student
from tiekd_ros.student.networks import ARCHITECTURES
from tiekd_ros.student.registry import StudentRegistry
from tiekd_ros.training.data import (
    TRUTH,
    DataOptions,
    TrainingData,
    TrainingSet,
    open_training_data,
)
from tiekd_ros.training.loop import OfflineTraining, TrainingJob, TrainingProgress
from tiekd_ros.training.processes import Processes, run_on_devices
from tiekd_ros.training.recipes import OwnPreparation, Recipe, TrainingPlan, get_recipe
from tiekd_ros.training.run_folder import RunFolder
from tiekd_ros.training.settings import HousekeepingSettings
from tiekd_ros.training.start import (
    AUTO,
    TrainingSizes,
    check_labels,
    check_size,
    first_student,
    sample_items,
    training_sizes,
)
from tiekd_ros.training.validation import EpochEvaluator, Validator

_LINE_EVERY_S = 30.0  # where no terminal shows a bar


class ProgressDisplay(Closing):
    """A bar on a terminal, now and then a line elsewhere, nothing where it is not shown."""

    def __init__(self, shown: bool) -> None:
        self._console = Console(stderr=True, quiet=not shown)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("starting", total=None)
        self._said_at = 0.0
        self._bar.start()

    def close(self) -> None:
        """End the bar."""
        self._bar.stop()

    def note(self, line: str) -> None:
        """Show a line."""
        self._console.print(line, highlight=False, markup=False)

    def progress(self, done: TrainingProgress) -> None:
        """Show where the training is."""
        loss = "skipped" if math.isnan(done.loss) else f"loss {done.loss:.4f}"
        scores = "".join(
            f", {name} {done.scores[name]:.4f}"
            for name in ("abs_rel", "rmse", "abs_rel_T")
            if name in done.scores
        )
        text = f"epoch {done.epoch}: {loss}{scores}"
        self._bar.update(self._task, description=text, completed=done.step, total=done.steps)
        now = time.monotonic()
        last = done.step == done.steps
        if not self._console.is_terminal and (last or now - self._said_at > _LINE_EVERY_S):
            self._said_at = now
            self.note(f"{done.step}/{done.steps} {text}")


def reading_workers(workers: int, processes: int) -> int:
    """Return how many processes read for each of those that train; -1 = by the cores."""
    if workers >= 0:
        return workers
    return min(8, max(0, (os.cpu_count() or 1) // processes - 1))


def training_job(
    recipe: Recipe,
    plan: TrainingPlan,
    housekeeping: HousekeepingSettings,
    run: RunFolder,
    data: TrainingData,
    student: Student,
    sizes: TrainingSizes,
) -> TrainingJob:
    """Return the training of a student on opened data, into a run's folder."""
    skip, seed = housekeeping.skip_bad, plan.train.seed
    bins = student.card.bins
    validator = None
    if len(data.validation):
        validator = Validator(
            data.validation,
            sizes.student,
            protocol_for(data.kind, bins),
            flip=recipe.flip_test,
            skip_bad=skip,
        )
    still = OwnPreparation(sizes.training, AugmentSettings(0.0, 1.0, 0.0, 0.0, 0.0))
    averages = recipe.average_norms and plan.train.batch_norm == "batch"
    evaluator = EpochEvaluator(
        validator,
        TrainingSet(data.train, still, seed, skip) if averages else None,
        plan.train.batch_size,
        {
            "recipe": recipe.name,
            "objective": plan.loss.objective,
            "seed": seed,
            "images": len(data.train),
            "data": data.kind,
        },
    )
    samples = TrainingSet(data.train, recipe.preparation(plan, sizes.training), seed, skip)
    return TrainingJob(recipe, plan, housekeeping, run, samples, evaluator)


def run_settings(
    recipe: Recipe,
    plan: TrainingPlan,
    data: TrainingData,
    student: Student,
    sizes: TrainingSizes,
    init: str,
) -> dict[str, Any]:
    """Return all that a run's result depends on, as plain values: what a resumed run must share."""
    return {
        "recipe": recipe.name,
        "init": init,
        "data": {
            "kind": data.kind,
            "labels": data.labels,
            "train": len(data.train),
            "validation": len(data.validation),
            "names_sha256": _digest(data),
        },
        "bins": student.card.bins.as_dict(),
        "input_size": sizes.student.as_dict(),
        "training_size": sizes.training.as_dict(),
        **plan.as_dict(),
    }


def _digest(data: TrainingData) -> str:
    """Return a hash of the items' names."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update("\n".join(part.names).encode() + b"\0")
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class TrainRequest:
    """What was asked for on the command line.

    Attributes:
        data: what to train on.
        output: the run's folder.
        recipe: a name in `RECIPES`.
        changes: settings by group (train, student, loss, augment) and name that differ from
            the recipe's.
        housekeeping: settings of snapshots, readers and curves that differ from the default.
        init: random, base, a student's folder or a file of backbone weights; auto = the base
            student for its own architecture in recipe tiekd, else random.
        resume: continue the run in `output`, if there is one.
        devices: how many processes; 0 = one, or as torchrun says.
        register: add the best student to the registry of `state`.
        state: a state folder.
        quiet: show no progress.
    """

    data: DataOptions
    output: Path
    recipe: str = "tiekd"
    changes: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    housekeeping: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    init: str = AUTO
    resume: bool = False
    devices: int = 0
    register: bool = False
    state: str = ""
    quiet: bool = False


def train_offline(request: TrainRequest) -> dict[str, Any]:
    """Train a student and return how it ended.

    Returns:
        Plain values: the fields of `TrainingOutcome`, `rank` (this process's, 0 unless it is
        one of torchrun's), `student` (the best one's folder), `version` (in the registry,
        where asked for) and `warning` (about the labels, or "").

    Raises:
        TiekdError: data, settings or the folder do not allow it, or the training failed; the
            message says what would do.
    """
    _plan(request)  # refuse bad values before any process starts
    housekeeping = HousekeepingSettings.from_mapping(request.housekeeping)
    return run_on_devices(request.devices, housekeeping.device, _work, request)


def _work(request: TrainRequest) -> dict[str, Any]:
    """Do the training in this process, one of several maybe."""
    recipe = get_recipe(request.recipe)
    plan = _plan(request)
    housekeeping = HousekeepingSettings.from_mapping(request.housekeeping)
    unused = ARCHITECTURES[plan.student.architecture].is_published
    with (
        Processes(housekeeping.device, plan.train.precision, unused_layers=unused) as processes,
        ProgressDisplay(processes.is_first and not request.quiet) as view,
    ):
        return _train(request, recipe, plan, housekeeping, processes, view)


def _train(
    request: TrainRequest,
    recipe: Recipe,
    plan: TrainingPlan,
    housekeeping: HousekeepingSettings,
    processes: Processes,
    view: ProgressDisplay,
) -> dict[str, Any]:
    data = open_training_data(request.data, recipe, plan, housekeeping.skip_bad)
    sampled = sample_items(data.train)
    warning = check_labels(plan, data, sampled)
    sizes = training_sizes(recipe, plan, sampled[0])
    init = _start(request.init, recipe, plan)
    student = first_student(init, plan, sizes.student, sampled, histogram=recipe.kind is None)
    check_size(student, sizes.training)
    run = RunFolder(request.output.expanduser().absolute())
    settings = run_settings(recipe, plan, data, student, sizes, init)
    student = dataclasses.replace(
        student,
        card=dataclasses.replace(
            student.card,
            teacher=data.labels,
            frames={"train": len(data.train), "held_out": len(data.validation)},
        ),
    )
    with run.opened(settings, resume=request.resume) if processes.is_first else nullcontext():
        processes.wait()
        view.note(data.describe())
        if warning:
            view.note(warning)
        workers = reading_workers(housekeeping.workers, processes.count)
        housekeeping = dataclasses.replace(housekeeping, workers=workers)
        job = training_job(recipe, plan, housekeeping, run, data, student, sizes)
        training = OfflineTraining(job, student, processes, view.progress, view.note)
        if training.state.step:
            view.note(f"continues after iteration {training.state.step} of {training.steps}")
        outcome = dataclasses.asdict(training.run())
        processes.wait()
        outcome["bad_items"] = data.left_out | outcome["bad_items"]
        outcome |= {"rank": processes.rank, "student": str(run.best), "version": ""}
        outcome["warning"] = warning
        if request.register and processes.is_first and not outcome["stopped_by"]:
            outcome["version"] = _register(run, request.state)
    return outcome


def _plan(request: TrainRequest) -> TrainingPlan:
    baseline = request.data.labels == TRUTH
    recipe = get_recipe(request.recipe)
    plan = recipe.plan_for(request.changes, baseline=baseline)
    from_base = _start(request.init, recipe, plan) == BASE_START
    return recipe.plan_for(request.changes, baseline=baseline, from_base=from_base)


def _start(init: str, recipe: Recipe, plan: TrainingPlan) -> str:
    if init != AUTO:
        return init
    return plan.student.weights if recipe.kind is None else RANDOM_START


def _register(run: RunFolder, state: str) -> str:
    """Add the best student to a registry, unless its weights are there; return its version."""
    registry = StudentRegistry(StateFolder.resolve(state).create().students)
    student = load_student(run.best)
    for version in reversed(registry.versions()):
        with suppress(CheckpointError):  # a damaged one is another's concern
            if registry.card(version).weights_sha256 == student.card.weights_sha256:
                return version
    return registry.add(student).version
