"""`tiekd label`, `train` and `evaluate`: data sets in; label maps, students and scores out.

What needs torch or gRPC is imported when a verb is called.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tiekd_ros.cli.options import (
    AsJson,
    Data,
    Kind,
    SkipBad,
    Split,
    State,
    check_choice,
    console,
    plain,
    print_reasons,
    progress,
    read_groups,
    read_size,
    with_connection,
    with_given_settings,
)
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import AUTO, ImageFolder, ReadOptions, RgbdFolder
from tiekd_ros.datasets.split_dataset import SplitDataset
from tiekd_ros.teacher.backends import BACKENDS, backend_options
from tiekd_ros.teacher.settings import ClientSettings
from tiekd_ros.training.settings import HousekeepingSettings, OfflineSettings

if TYPE_CHECKING:
    from tiekd_ros.evaluation.evaluate import Evaluation


@with_connection()
@with_given_settings("options", list(backend_options().values()), "Teacher in this process")
def label(
    data: Data,
    client: ClientSettings,
    options: dict[str, Any],
    kind: Kind = "auto",
    split: Split = None,
    teacher: Annotated[
        str, typer.Option(help="A teacher server (tiekd teacher serve).", metavar="HOST:PORT")
    ] = "",
    backend: Annotated[
        str,
        typer.Option(
            help=f"Instead of a server, in this process: {', '.join(BACKENDS)}; or KIND:ARGUMENT, "
            "as in huggingface:MODEL or onnx:FILE."
        ),
    ] = "",
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the maps.", metavar="DIR", show_default="teacher/ in the data set"
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Images a second, where no stamps are recorded.", min=0.001)
    ] = 30.0,
    min_known: Annotated[
        float,
        typer.Option(help="Least share of known depth in an answer that is believed.", min=0.0),
    ] = 0.05,
    in_flight: Annotated[
        int, typer.Option(help="Images under way at the same time.", min=1, max=32)
    ] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Drop the maps that are there, and start anew.")
    ] = False,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
) -> None:
    """Have a teacher label every image of a data set; run it again to go on where it stopped.

    Writes one 16-bit PNG an image (KITTI, NYU: the published layout; folders: metres * 256)
    and teacher.json. Of a state folder it labels the waiting frames as the companion does: labels
    that cannot be believed are rejected, with the reason. Exits 1 where an image got no label,
    unless --skip-bad.
    """
    from tiekd_ros.evaluation.label import LabelOptions, label_data, open_teacher
    from tiekd_ros.teacher.protocol import AnswerChecks

    wanted = LabelOptions(
        data=data,
        kind=kind,
        split=split,
        output=output,
        rate_hz=rate,
        overwrite=overwrite,
        skip_bad=skip_bad,
        in_flight=in_flight,
        checks=AnswerChecks(min_known_share=min_known),
    )
    opened = partial(open_teacher, replace(client, url=teacher), backend, options)
    with progress("labelling", None if as_json else console) as track:
        report = label_data(wanted, opened, track)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=2))
    else:
        where = f"; maps in {report.output}" if report.output else ""
        console.print(
            f"{report.labelled} images labelled, {report.kept} had a label, "
            f"{len(report.failed)} failed{where}",
            highlight=False,
        )
        print_reasons(report.failed)
    if report.failed and not skip_bad:
        raise typer.Exit(1)


_AGAINST = ("", "truth", "teacher", "both")
_WITH_SPLIT = (SplitDataset, ImageFolder, RgbdFolder)
_METRES = ("rmse", "rmse_T", "sq_rel", "sq_rel_T")


def evaluate(
    data: Data,
    student: Annotated[
        str, typer.Option(help="A version, `live`, or a student's folder.", metavar="STUDENT")
    ],
    state: State = "",
    kind: Kind = AUTO,
    split: Split = None,
    crop: Annotated[
        str,
        typer.Option(
            help="garg, eigen, nyu or none.", show_default="kitti: garg, nyu: nyu, else none"
        ),
    ] = "",
    flip: Annotated[
        bool, typer.Option(help="Average the depth of image and mirror image, as published.")
    ] = True,
    against: Annotated[
        str, typer.Option(help="truth, teacher or both.", show_default="truth; frames: teacher")
    ] = "",
    teacher_maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder of teacher maps.", metavar="DIR", show_default="teacher/ in the data set"
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    limit: Annotated[
        int | None, typer.Option(help="Images at most.", min=1, show_default="all")
    ] = None,
    skip_bad: SkipBad = False,
    as_json: AsJson = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the JSON there as well.", metavar="FILE")
    ] = None,
) -> None:
    """Measure a student on a data set, by the published protocol of KITTI and NYU.

    On KITTI and NYU the published crops and depth ranges count; elsewhere the student's own
    range, in the whole image. An imported student of KITTI's or NYU's published size runs at the
    image's size, as published; all others at the input size of their card, as on a robot.
    """
    from tiekd_ros.evaluation.evaluate import Predictor, evaluate_student, find_student
    from tiekd_ros.evaluation.frame_log_dataset import (
        FRAMES,
        FrameLogDataset,
        frame_log_file,
        open_data,
    )
    from tiekd_ros.evaluation.protocol import CROPS, protocol_for

    check_choice("crop", crop, ("", *CROPS))
    check_choice("against", against, _AGAINST)
    is_log = kind == FRAMES or (kind == AUTO and frame_log_file(data) is not None)
    against = against or ("teacher" if is_log else "truth")
    wanted = ReadOptions(
        split=split,
        truth=against != "teacher",
        teacher=against != "truth",
        teacher_maps=teacher_maps,
        skip_bad=skip_bad,
    )
    found = find_student(student, StateFolder.resolve(state))
    dataset = open_data(kind, data, wanted)
    predictor = Predictor(found, device, flip=flip)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    with contextlib.ExitStack() as held:
        if isinstance(dataset, FrameLogDataset):
            held.callback(dataset.close)
        track = held.enter_context(progress("evaluating", None if as_json else console))
        result = evaluate_student(
            dataset,
            predictor,
            protocol_for(dataset.kind, found.card.bins, crop or None),
            limit=limit,
            skip_bad=skip_bad,
            advance=track(total),
        )
    used_split = dataset.split if isinstance(dataset, _WITH_SPLIT) else None
    provenance = result.provenance["data"] | {
        "path": str(data.expanduser().resolve()),
        "split": str(used_split) if used_split else None,
        "against": against,
    }
    result = dataclasses.replace(result, provenance=result.provenance | {"data": provenance})
    text = json.dumps(result.as_dict(), indent=2)
    if output is not None:
        _write(output, text)
    if as_json:
        typer.echo(text)
    else:
        _evaluate_show(result)
        print_reasons(result.skipped)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TiekdError(f"cannot write {path}: {error.strerror}") from error


def _evaluate_show(result: Evaluation) -> None:
    """Print the means as a table, and under it what they were measured with."""
    table = Table("error", "mean")
    for name, value in result.mean.items():
        unit = " [m]" if name in _METRES else ""
        table.add_row(f"{name}{unit}", f"{value:.4f}")
    console.print(table)
    student, data = result.provenance["student"], result.provenance["data"]
    protocol = result.provenance["protocol"]
    console.print(
        f"{len(result.rows)} images of {data['path']} ({data['kind']}), {len(result.skipped)} "
        f"skipped, {result.without_truth} without valid truth; student "
        f"{student['version'] or '(unnamed)'} ({student['architecture']}, "
        f"{student['weights_sha256'][:12]}); crop {protocol['crop']}, "
        f"{'flip-averaged' if protocol['flip'] else 'no flip'}, "
        f"{protocol['min_depth_m']:g} to {protocol['max_depth_m']:g} m",
        highlight=False,
        soft_wrap=True,
    )


_NEEDED = ("torch", "accelerate", "tensorboard")
_GROUPS = ("train", "student", "loss", "augment", "housekeeping")
# Settings that have an option of their own; --settings takes all.
_TRAIN = ("epochs", "iterations", "batch_size", "learning_rate", "seed")
_HOUSEKEEPING = ("workers", "device", "skip_bad")
_SIGNALLED = 128  # what shells add to a signal's number


@with_given_settings(
    "train_settings",
    [each for each in dataclasses.fields(OfflineSettings) if each.name in _TRAIN],
    panel="Training",
    names={"learning_rate": "lr"},
    unset="the recipe's",
)
@with_given_settings(
    "housekeeping",
    [each for each in dataclasses.fields(HousekeepingSettings) if each.name in _HOUSEKEEPING],
    panel="Housekeeping",
)
def train(
    data: Annotated[
        Path,
        typer.Option("--data", help="The data set's folder, or a state folder.", metavar="DIR"),
    ],
    output: Annotated[
        Path, typer.Option("--output", help="Folder of this run, new or empty.", metavar="RUN_DIR")
    ],
    kind: Annotated[
        str, typer.Option(help="kitti, nyu, rgbd, images, frames (a frame log), or auto.")
    ] = "auto",
    split: Annotated[
        Path | None,
        typer.Option(
            help="Training images: lines `image depth focal` (else the usual training file), or "
            "in folders one name a line (else all).",
            metavar="FILE",
        ),
    ] = None,
    val_split: Annotated[
        Path | None,
        typer.Option(
            help="Validation images; else the last part of the training data.", metavar="FILE"
        ),
    ] = None,
    teacher_dir: Annotated[
        Path | None,
        typer.Option(help="Teacher maps.", metavar="DIR", show_default="teacher/ in the data set"),
    ] = None,
    labels: Annotated[
        str, typer.Option(help="Learn teacher or truth; auto = the teacher where there are maps.")
    ] = "auto",
    recipe: Annotated[str, typer.Option(help="tiekd, paper-kitti or paper-nyu.")] = "tiekd",
    arch: Annotated[
        str,
        typer.Option(
            help="The network, such as efficientnet-lite0 or resnet18-regression; any other word "
            "is answered with all there are.",
            show_default="the recipe's",
        ),
    ] = "",
    objective: Annotated[
        str,
        typer.Option(
            help="tiekd, tiekd-dpm, tiekd-depth, paper, paper-dpm, paper-depth, ssim, mse, si, "
            "ssim+si or ssim+mse.",
            show_default="the recipe's",
        ),
    ] = "",
    input_size: Annotated[
        str,
        typer.Option(
            help="What the network sees in training.",
            metavar="HxW",
            show_default="from the data, or the recipe's crop",
        ),
    ] = "",
    init: Annotated[
        str,
        typer.Option(
            help="base (ships), random, a student's folder, or a file of ImageNet weights for "
            "the backbone.",
            metavar="START",
            show_default="base where one ships, else random",
        ),
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in RUN_DIR, if there is one.")
    ] = False,
    devices: Annotated[
        int,
        typer.Option(
            help="Processes, one a GPU.", min=0, max=1024, show_default="1, or torchrun's"
        ),
    ] = 0,
    register: Annotated[
        bool, typer.Option("--register", help="Add the best student to the state's registry.")
    ] = False,
    state: State = "",
    *,
    train_settings: dict[str, Any],
    housekeeping: dict[str, Any],
    settings: Annotated[
        str,
        typer.Option(
            help='More settings as JSON, for example {"loss": {"sigma_relative": 0.03}}; groups: '
            "train, student, loss, augment, housekeeping."
        ),
    ] = "{}",
    as_json: AsJson = False,
) -> None:
    """Train a student on a data set, on one or several devices.

    Writes snapshots (a run that was killed goes on with --resume), curves for tensorboard, and
    the best student as RUN_DIR/student. Ctrl-C ends it after a last snapshot.
    """
    _require_training()
    from tiekd_ros.training.data import DataOptions
    from tiekd_ros.training.run import TrainRequest, train_offline

    groups = read_groups(settings)
    unknown = sorted(groups.keys() - set(_GROUPS))
    if unknown:
        raise InvalidSettingError(
            f"unknown group of settings {unknown[0]!r}: known are {', '.join(_GROUPS)}"
        )
    asked = {
        "train": {**train_settings, **read_size(input_size)},
        "student": {"architecture": arch} if arch else {},
        "loss": {"objective": objective} if objective else {},
        "housekeeping": housekeeping,
    }
    for group, values in asked.items():
        groups[group] = {**groups.get(group, {}), **values}
    outcome = train_offline(
        TrainRequest(
            data=DataOptions(
                data,
                kind=kind,
                split=split,
                val_split=val_split,
                teacher_dir=teacher_dir,
                labels=labels,
            ),
            output=output,
            recipe=recipe,
            housekeeping=groups.pop("housekeeping"),
            changes=groups,
            init=init,
            resume=resume,
            devices=devices,
            register=register,
            state=state,
            quiet=as_json,
        )
    )
    if outcome["rank"] == 0:
        _show(outcome, output, as_json)
    if outcome["stopped_by"]:
        raise typer.Exit(_SIGNALLED + outcome["stopped_by"])


def _require_training() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise TiekdError(
            f"training needs {', '.join(missing)}: install them with `pip install "
            "'tiekd_ros[train]'`"
        )


def _show(outcome: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(outcome, indent=2))
        return
    print_reasons(outcome["bad_items"])
    bad, skipped = len(outcome["bad_items"]), outcome["skipped"]
    notes = f", {bad} items passed over" if bad else ""
    notes += f", {skipped} steps skipped (loss or gradient not finite)" if skipped else ""
    at = f"iteration {outcome['step']} of {outcome['steps']}{notes}"
    if outcome["stopped_by"]:
        text = f"stopped after {at}; a snapshot is written: continue with --resume"
    else:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in outcome["scores"].items())
        text = f"trained: {at}; {output / 'student'}: {scores or 'no validation data'}"
    if outcome["version"]:
        text += f"; registered as version {outcome['version']}"
    plain(text)
