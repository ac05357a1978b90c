"""`tiekd train`: from a data set to a student, on one or several devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from tiekd_ros.distillation.replay import BASE_START, RANDOM_START
from tiekd_ros.distillation.training.launching import run_on_devices
from tiekd_ros.distillation.training.loop import OfflineTraining
from tiekd_ros.distillation.training.processes import Processes
from tiekd_ros.distillation.training.recipes import Recipe, get_recipe
from tiekd_ros.distillation.training.run_folder import RunFolder
from tiekd_ros.distillation.training.settings import HousekeepingSettings, TrainingPlan
from tiekd_ros.distillation.training.starting import AUTO, first_student, look_at
from tiekd_ros.offline.training_data import TRUTH, DataOptions, open_training_data
from tiekd_ros.offline.training_job import (
    check_labels,
    check_size,
    reading_workers,
    run_settings,
    training_job,
    training_sizes,
)
from tiekd_ros.offline.training_view import TrainingView
from tiekd_ros.state import StateFolder
from tiekd_ros.student import ARCHITECTURE, CheckpointError, StudentRegistry, load_student


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
    unused = plan.train.architecture != ARCHITECTURE
    with (
        Processes(housekeeping.device, plan.train.precision, unused_layers=unused) as processes,
        TrainingView(processes.is_first and not request.quiet) as view,
    ):
        return _train(request, recipe, plan, housekeeping, processes, view)


def _train(
    request: TrainRequest,
    recipe: Recipe,
    plan: TrainingPlan,
    housekeeping: HousekeepingSettings,
    processes: Processes,
    view: TrainingView,
) -> dict[str, Any]:
    data = open_training_data(request.data, recipe, plan, housekeeping.skip_bad)
    seen = look_at(data.train)
    warning = check_labels(plan, data, seen)
    sizes = training_sizes(recipe, plan, seen[0])
    init = _start(request.init, recipe, plan)
    student = first_student(init, plan, sizes.student, seen, histogram=recipe.kind is None)
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
    has_start = recipe.kind is None and plan.train.architecture == ARCHITECTURE
    return plan.student.start if has_start else RANDOM_START


def _register(run: RunFolder, state: str) -> str:
    """Add the best student to a registry, unless its weights are there; return its version."""
    registry = StudentRegistry(StateFolder.resolve(state).create().students)
    student = load_student(run.best)
    for version in reversed(registry.versions()):
        with suppress(CheckpointError):  # a damaged one is another's concern
            if registry.card(version).weights_sha256 == student.card.weights_sha256:
                return version
    return registry.add(student).version
