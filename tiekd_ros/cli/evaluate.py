"""`tiekd evaluate`: a student's errors on a data set; torch is imported when it runs."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from tiekd_ros.cli.options import (
    AsJson,
    Data,
    Kind,
    SkipBad,
    Split,
    State,
    console,
    print_reasons,
    progress,
)
from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import AUTO, ImageFolder, ReadOptions, RgbdFolder
from tiekd_ros.datasets.split_dataset import SplitDataset

if TYPE_CHECKING:
    from tiekd_ros.evaluation.evaluate import Evaluation

_AGAINST = ("truth", "teacher", "both")
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

    _check_choice("crop", crop, CROPS)
    _check_choice("against", against, _AGAINST)
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
        _show(result)
        print_reasons(result.skipped)


def _check_choice(name: str, value: str, known: Collection[str]) -> None:
    if value and value not in known:
        raise InvalidSettingError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise TiekdError(f"cannot write {path}: {error.strerror}") from error


def _show(result: Evaluation) -> None:
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
