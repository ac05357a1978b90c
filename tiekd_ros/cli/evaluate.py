"""From the options of `tiekd evaluate` to a table."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import AUTO, ImageFolder, ReadOptions, RgbdFolder
from tiekd_ros.datasets.split_dataset import SplitDataset
from tiekd_ros.evaluation.evaluate import AGAINST, Evaluation, Predictor, evaluate, find_student
from tiekd_ros.evaluation.frame_log_dataset import (
    FRAMES,
    FrameLogDataset,
    frame_log_file,
    open_data,
)
from tiekd_ros.evaluation.protocol import CROPS, protocol_for

_WITH_SPLIT = (SplitDataset, ImageFolder, RgbdFolder)
_METRES = ("rmse", "rmse_T", "sq_rel", "sq_rel_T")


@dataclass(frozen=True)
class EvaluateOptions:
    """The options of `tiekd evaluate`; empty texts stand for what the data set suggests."""

    data: Path
    student: str
    state: str = ""
    kind: str = AUTO
    split: Path | None = None
    crop: str = ""
    flip: bool = True
    against: str = ""
    teacher_maps: Path | None = None
    device: str = "auto"
    limit: int | None = None
    skip_bad: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("crop", self.crop, CROPS),
            ("against", self.against, AGAINST),
        ):
            if value and value not in known:
                raise InvalidSettingError(
                    f"{name} must be one of {', '.join(known)}, got {value!r}"
                )


def evaluate_data(
    options: EvaluateOptions, track: Callable[[int], Callable[[], None]]
) -> Evaluation:
    """Open student and data, and compare.

    Raises:
        TiekdError: one of them cannot be used, or the output file cannot be written.
    """
    is_log = options.kind == FRAMES or (
        options.kind == AUTO and frame_log_file(options.data) is not None
    )
    against = options.against or ("teacher" if is_log else "truth")
    wanted = ReadOptions(
        split=options.split,
        truth=against != "teacher",
        teacher=against != "truth",
        teacher_maps=options.teacher_maps,
        skip_bad=options.skip_bad,
    )
    student = find_student(options.student, StateFolder.resolve(options.state))
    dataset = open_data(options.kind, options.data, wanted)
    predictor = Predictor(student, options.device, flip=options.flip)
    total = len(dataset) if options.limit is None else min(options.limit, len(dataset))
    with contextlib.ExitStack() as held:
        if isinstance(dataset, FrameLogDataset):
            held.callback(dataset.close)
        found = evaluate(
            dataset,
            predictor,
            protocol_for(dataset.kind, student.card.bins, options.crop or None),
            limit=options.limit,
            skip_bad=options.skip_bad,
            advance=track(total),
        )
    data = found.provenance["data"] | {
        "path": str(options.data.expanduser().resolve()),
        "split": str(dataset.split) if isinstance(dataset, _WITH_SPLIT) and dataset.split else None,
        "against": against,
    }
    result = replace(found, provenance=found.provenance | {"data": data})
    if options.output is not None:
        _write(options.output, result)
    return result


def show(result: Evaluation, console: Console) -> None:
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


def _write(path: Path, result: Evaluation) -> None:
    try:
        path.write_text(json.dumps(result.as_dict(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise TiekdError(f"cannot write {path}: {error.strerror}") from error
