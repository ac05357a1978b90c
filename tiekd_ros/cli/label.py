"""From the options of `tiekd label` to labels."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tiekd_ros.core.errors import InvalidSettingError, TiekdError
from tiekd_ros.datasets import AUTO, ReadOptions, open_images
from tiekd_ros.datasets.map_format import TEACHER_FOLDER
from tiekd_ros.evaluation.frame_log_dataset import FRAMES, frame_log_file
from tiekd_ros.evaluation.label import (
    Labelling,
    LabelReport,
    LocalTeacher,
    ServerTeacher,
    Teacher,
    maps_of,
)
from tiekd_ros.framelog import FrameStore
from tiekd_ros.framelog.settings import FrameLogSettings
from tiekd_ros.teacher.backends import BACKENDS, BackendOptions, create_backend, parse_backend
from tiekd_ros.teacher.checks import AnswerChecks
from tiekd_ros.teacher.client import ClientSettings

Track = Callable[[int], Callable[[], None]]
"""Takes the number of images and returns what to call after each."""

_LARGEST_LOG_MB = 10_000_000


@dataclass(frozen=True)
class TeacherOptions:
    """Which teacher, and how it is asked."""

    url: str = ""
    backend: str = ""
    frames: str = ""
    seed: int = 0
    period_s: float = 60.0
    min_known_share: float = 0.05
    in_flight: int = 2
    ca: str = ""
    cert: str = ""
    key: str = ""
    token_file: str = ""
    tls: bool = False


@dataclass(frozen=True)
class LabelOptions:
    """The options of `tiekd label`."""

    data: Path
    kind: str = AUTO
    split: Path | None = None
    teacher: TeacherOptions = TeacherOptions()
    output: Path | None = None
    rate_hz: float = 30.0
    overwrite: bool = False
    skip_bad: bool = False


def open_teacher(options: TeacherOptions) -> Teacher:
    """Return the teacher that the options name.

    Raises:
        InvalidSettingError: they name none, or two.
        TiekdError: it cannot be reached or started, or is not metric.
    """
    if bool(options.url) == bool(options.backend):
        raise InvalidSettingError(
            "give one teacher: a server (--teacher HOST:PORT) or, in this process, a backend "
            f"(--backend {'|'.join(BACKENDS)})"
        )
    checks = AnswerChecks(min_known_share=options.min_known_share)
    if options.url:
        return ServerTeacher(_client_settings(options), checks)
    kind = options.backend
    own = BackendOptions(frames=options.frames, seed=options.seed, period_s=options.period_s)
    if ":" in kind:
        kind, own = parse_backend(kind)
    return LocalTeacher(create_backend(kind, own), checks)


def _client_settings(options: TeacherOptions) -> ClientSettings:
    return ClientSettings(
        url=options.url,
        in_flight=options.in_flight,
        tls=options.tls or bool(options.ca or options.cert or options.key),
        ca=options.ca,
        cert=options.cert,
        key=options.key,
        token_file=options.token_file,
    )


def label_data(options: LabelOptions, track: Track) -> LabelReport:
    """Label a data set or a frame log.

    Raises:
        TiekdError: data, teacher or output folder cannot be used; what is labelled stays.
    """
    log = frame_log_file(options.data) if options.kind in (AUTO, FRAMES) else None
    if log is not None or options.kind == FRAMES:
        return _label_frames(options, log, track)
    # The training images, where no split is given: a student learns from the maps.
    wanted = ReadOptions(
        split=options.split, subset="train", truth=False, skip_bad=options.skip_bad
    )
    source = open_images(options.kind, options.data, wanted)
    folder, files = maps_of(source, options.output or options.data / TEACHER_FOLDER)
    with contextlib.closing(open_teacher(options.teacher)) as teacher, folder.exclusive():
        folder.claim(teacher.identity, files, overwrite=options.overwrite)
        labelling = _labelling(options, teacher, track(len(source)))
        labelling.report.output = str(folder.path)
        labelling.label_images(source, folder, options.rate_hz)
    return labelling.report


def _label_frames(options: LabelOptions, log: Path | None, track: Track) -> LabelReport:
    if log is None:
        raise TiekdError(f"there is no frame log in {options.data}; give a state folder")
    if options.split is not None:
        raise InvalidSettingError("a frame log has no split files: leave out --split")
    if options.output is not None or options.overwrite:
        raise InvalidSettingError(
            "a frame log keeps its labels itself, and good ones stay: leave out --output and "
            "--overwrite"
        )
    # The limit is its companion's to set: what was logged under a larger one must stay here.
    endless = FrameLogSettings(max_bytes_mb=_LARGEST_LOG_MB)
    with (
        contextlib.closing(open_teacher(options.teacher)) as teacher,
        FrameStore(log, endless) as store,
    ):
        waiting = sum(store.stats().frames.get("logged", {}).values())
        labelling = _labelling(options, teacher, track(waiting))
        labelling.label_frames(store)
    return labelling.report


def _labelling(options: LabelOptions, teacher: Teacher, advance: Callable[[], None]) -> Labelling:
    in_flight = options.teacher.in_flight
    return Labelling(teacher, in_flight, skip_bad=options.skip_bad, advance=advance)
