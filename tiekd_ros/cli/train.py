"""`tiekd train` on the command line; what needs torch is imported when it is called."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tiekd_ros.cli.options import AsJson, State, plain, print_reasons, with_given_settings
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.training.settings import HousekeepingSettings, OfflineSettings

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
            help="mobilenetv2-fast, mobilenetv2, resnet18, resnet50, or these with -regression.",
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
            show_default="base for mobilenetv2-fast, else random",
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

    groups = _groups(settings)
    asked = {
        "train": {**train_settings, **_size(input_size)},
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


def _groups(settings: str) -> dict[str, dict[str, Any]]:
    try:
        values = json.loads(settings)
        groups = {str(name): dict(group) for name, group in values.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidSettingError(
            f'settings must be JSON like {{"train": {{"clip_norm": 5}}}}, got {settings!r}'
        ) from error
    unknown = sorted(groups.keys() - set(_GROUPS))
    if unknown:
        raise InvalidSettingError(
            f"unknown group of settings {unknown[0]!r}: known are {', '.join(_GROUPS)}"
        )
    return groups


def _size(text: str) -> dict[str, int]:
    if not text:
        return {}
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise InvalidSettingError(f"--input-size must be HEIGHTxWIDTH like 224x320, got {text!r}")
    return {"height": int(match[1]), "width": int(match[2])}


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
