"""Labels for all images of a data set, or of a frame log, resumable at any moment.

A frame log's frames take the companion's road: the bytes that were logged go to the teacher, and
its labels are kept only where they are believed. A data set's images travel without loss, and
each map is written whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tiekd_ros.core.camera import Intrinsics
from tiekd_ros.core.errors import BadDepthError, BadImageError, InvalidSettingError, TiekdError
from tiekd_ros.core.images import DepthMap, RgbImage, encode_png, resize_depth
from tiekd_ros.core.labels import Label, LabelRejected, TeacherUnavailable
from tiekd_ros.core.state import StateFolder
from tiekd_ros.datasets import AUTO, DatasetError, LabelSource, MapFormat, ReadOptions, open_images
from tiekd_ros.datasets.items import TEACHER_FOLDER, TEACHER_NOTE
from tiekd_ros.evaluation.frame_log_dataset import FRAMES, frame_log_file
from tiekd_ros.framelog import FrameLogSettings, FrameStore, Labeller, LabellerSettings, LabelQueue
from tiekd_ros.framelog.labeller import SuspectTeacherError
from tiekd_ros.teacher.backends import BACKENDS, read_backend
from tiekd_ros.teacher.client import ClientSettings, TeacherClient
from tiekd_ros.teacher.errors import TeacherUnreachableError
from tiekd_ros.teacher.label_source import (
    UNREADABLE,
    LocalTeacher,
    StudentDepthFunction,
    Teacher,
    TeacherLabelSource,
    UploadSettings,
)
from tiekd_ros.teacher.protocol import AnswerChecks, TeacherIdentity
from tiekd_ros.teacher.trust import LabelJudge, TrustSettings

_LOCK = ".lock"
_WRITING = ".writing-"


class LabelFolderError(TiekdError):
    """Labels cannot be written to a folder; the message says why and what would do."""


class MapFolder:
    """One teacher's maps of one data set.

    A map is written to a temporary name, synced and renamed: a process killed at any moment
    leaves whole maps only. `teacher.json` says who made them.
    """

    def __init__(self, path: Path, map_format: MapFormat) -> None:
        """Nothing is read or made yet."""
        self.path = path
        self.map_format = map_format

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Make the folder, and let no other process write to it during the block.

        Raises:
            LabelFolderError: another process does, or the folder cannot be made.
        """
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                lock = held.enter_context((self.path / _LOCK).open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise LabelFolderError(
                    f"another process is labelling into {self.path}; wait for it, or end it"
                ) from None
            except OSError as error:
                raise LabelFolderError(
                    f"cannot write to {self.path}: {error.strerror}; give another folder with "
                    "--output"
                ) from error
            yield

    def claim(self, teacher: TeacherIdentity, files: Iterable[str], *, overwrite: bool) -> None:
        """Make the folder this teacher's, or go on where this teacher stopped.

        Args:
            teacher: who is going to label.
            files: the names of all maps of the data set.
            overwrite: drop those of them that are there, if `teacher.json` says whose they are.

        Raises:
            LabelFolderError: the maps that are there are another teacher's, and `overwrite`
                is off or would leave some of them; or nothing says whose they are.
        """
        note = self.path / TEACHER_NOTE
        wanted = {
            "teacher": teacher.name,
            "version": teacher.version,
            "units": self.map_format.units,
        }
        names, there = set(files), self._maps()
        if there and not note.exists():
            raise LabelFolderError(  # never overwritten: they may be images, or measured depth
                f"{self.path} holds files like {there[0]} and no {TEACHER_NOTE} that says whose "
                "they are; give another folder with --output, or move them away"
            )
        if overwrite:
            found = None
            with contextlib.suppress(LabelFolderError):
                found = self._read_note(note)
            others = [name for name in there if name not in names]
            if others and found != wanted:
                raise LabelFolderError(
                    f"{self.path} also holds {len(others)} maps of images that are not labelled "
                    f"now (such as {others[0]}), made by {_named(found)}: they would stay beside "
                    f"those of {_named(wanted)}, and one folder holds one teacher's; give another "
                    "with --output, label all those images at once, or delete the folder"
                )
            for name in names:
                (self.path / name).unlink(missing_ok=True)
        elif (found := self._read_note(note)) not in (None, wanted):
            raise LabelFolderError(
                f"{self.path} holds maps of {_named(found)}, not of {_named(wanted)}: one folder "
                "holds one teacher's; give another with --output, or replace all of them with "
                "--overwrite"
            )
        self._write(note, (json.dumps(wanted, indent=2) + "\n").encode())

    def has(self, name: str) -> bool:
        """Tell whether a map is there and whole; a damaged one is not."""
        path = self.path / name
        if not path.is_file():
            return False
        try:
            return bool(np.isfinite(self.map_format.read(path)).any())
        except DatasetError:
            return False

    def put(self, name: str, depth: DepthMap) -> None:
        """Write a map, metres, NaN = unknown; an earlier one is replaced.

        Raises:
            BadDepthError: not one pixel lies in the range that can be stored.
            LabelFolderError: the disk refuses.
        """
        limit = self.map_format.max_depth_m
        if not bool(((depth > 0) & (depth <= limit)).any()):
            raise BadDepthError(
                f"no depth between 0 and {limit:g} m, which this layout's maps can hold"
            )
        self._write(self.path / name, self.map_format.encode(depth))

    def _maps(self) -> list[str]:
        """Return the names of all files that may be maps, of whatever images."""
        return sorted(
            path.name for path in self.path.glob("*.png") if not path.name.startswith(".")
        )

    def _read_note(self, path: Path) -> dict[str, str] | None:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return {str(key): str(value) for key, value in values.items()}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, AttributeError) as error:
            raise LabelFolderError(
                f"{path} cannot be read ({error}); replace the folder's maps with --overwrite"
            ) from error

    def _write(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(_WRITING + path.name)
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise LabelFolderError(
                f"cannot write {path}: {error.strerror}; make room and run the command again"
            ) from error


def _named(note: dict[str, str] | None) -> str:
    if note is None:
        return "an unknown teacher"
    return f"{note.get('teacher')} {note.get('version')} ({note.get('units')})"


Track = Callable[[int], Callable[[], None]]
"""Takes the number of images and returns what to call after each."""

_LARGEST_LOG_MB = 10_000_000
_GIVE_UP_AFTER = 3
"""Failures in a row after which the teacher, not an image, is taken for broken or away."""
_RETRY_S = 0.2


@dataclass(frozen=True)
class LabelOptions:
    """What is labelled, and how."""

    data: Path
    kind: str = AUTO
    split: Path | None = None
    output: Path | None = None
    rate_hz: float = 30.0
    """Makes stamps for images that have none."""
    overwrite: bool = False
    skip_bad: bool = False
    """List images that cannot be read, instead of ending."""
    in_flight: int = 2
    checks: AnswerChecks = field(default_factory=AnswerChecks)
    trust: TrustSettings = field(default_factory=TrustSettings)
    """Of a frame log's labels; a data set's images need not follow one another."""


@dataclass
class LabelReport:
    """What became of the images."""

    labelled: int = 0
    kept: int = 0
    """Images that had a whole label already."""
    failed: dict[str, str] = field(default_factory=dict)
    """Images without a label, by name, and why."""
    output: str = ""
    """The folder of the maps; empty where a frame log keeps the labels."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by name, fit for JSON."""
        return {"labelled": self.labelled, "kept": self.kept, "failed": self.failed}


class TeacherChangedError(TiekdError):
    """Another teacher took the place of the one whose labels are being made."""


def open_teacher(client: ClientSettings, backend: str, options: Mapping[str, Any]) -> Teacher:
    """Return a teacher that answers.

    Args:
        client: the server; an empty url = none.
        backend: instead of a server, the backend in this process: KIND or KIND:ARGUMENT.
        options: of the backend, by name, those that were given.

    Raises:
        InvalidSettingError: neither is named, or both are.
        TiekdError: it cannot be reached or started, or is not metric.
    """
    if bool(client.url) == bool(backend):
        raise InvalidSettingError(
            "give one teacher: a server (--teacher HOST:PORT) or, in this process, a backend "
            f"(--backend {'|'.join(BACKENDS)})"
        )
    if backend:
        return LocalTeacher(read_backend(backend, options).build())
    teacher = TeacherClient(client)
    try:
        teacher.identity()
    except BaseException:
        teacher.close()
        raise
    return teacher


def label_data(options: LabelOptions, teacher: Callable[[], Teacher], track: Track) -> LabelReport:
    """Label a data set or a frame log.

    Args:
        options: what, and how.
        teacher: opens the teacher, which is closed at the end.
        track: shows how far it is.

    Raises:
        TeacherUnreachableError: the teacher is away, broken or suspect; what is labelled stays.
        TiekdError: data, teacher or output folder cannot be used; what is labelled stays.
    """
    log = frame_log_file(options.data) if options.kind in (AUTO, FRAMES) else None
    if log is not None or options.kind == FRAMES:
        return _label_frames(options, log, teacher, track)
    return _label_images(options, teacher, track)


def _label_frames(
    options: LabelOptions, log: Path | None, teacher: Callable[[], Teacher], track: Track
) -> LabelReport:
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
    settings = LabellerSettings(in_flight=options.in_flight, retry_s=_RETRY_S)
    with contextlib.closing(teacher()) as opened, FrameStore(log, endless) as store:
        source = TeacherLabelSource(
            opened,
            checks=options.checks,
            judge=LabelJudge(options.trust, store.newest_labels(options.trust.history)),
            max_side=settings.max_side,
            student_depth=_student_depth(log, options.trust),
        )
        advance = track(sum(store.stats().frames.get("logged", {}).values()))
        return _label_all(store, source, settings, str, advance, LabelReport())


def _student_depth(log: Path, trust: TrustSettings) -> StudentDepthFunction | None:
    """Return the depth of the student that is live in the frame log's state folder, if any."""
    folder = StateFolder(log.parent)
    if not (trust.needs_student and folder.frames == log and folder.students.is_dir()):
        return None
    from tiekd_ros.student.live_depth import LiveStudentDepth  # imports torch
    from tiekd_ros.student.registry import StudentRegistry

    return LiveStudentDepth(StudentRegistry(folder.students))


def _label_images(
    options: LabelOptions, teacher: Callable[[], Teacher], track: Track
) -> LabelReport:
    # The training images, where no split is given: a student learns from the maps.
    wanted = ReadOptions(
        split=options.split, subset="train", truth=False, skip_bad=options.skip_bad
    )
    data = open_images(options.kind, options.data, wanted)
    files = [data.teacher_file(index) for index in range(len(data))]
    folder = MapFolder(options.output or options.data / TEACHER_FOLDER, data.map_format)
    settings = LabellerSettings(in_flight=options.in_flight, retry_s=_RETRY_S, suspect_after=0)
    with contextlib.closing(teacher()) as opened, folder.exclusive():
        folder.claim(opened.identity(), files, overwrite=options.overwrite)
        advance = track(len(data))
        with ThreadPoolExecutor(options.in_flight) as pool:
            waiting = [i for i, there in enumerate(pool.map(folder.has, files)) if not there]
        report = LabelReport(kept=len(data) - len(waiting), output=str(folder.path))
        report.failed.update(data.report.bad)
        for _ in range(report.kept):
            advance()
        queue = ImageQueue(data, folder, waiting, opened.identity(), options)
        source = TeacherLabelSource(
            opened,
            checks=options.checks,
            judge=LabelJudge(TrustSettings(max_scale_jump=0, max_student_factor=0)),
            upload=UploadSettings(max_side=0, jpeg_quality=100),  # as it is
        )
        return _label_all(queue, source, settings, data.names.__getitem__, advance, report)


def _label_all(
    queue: LabelQueue,
    source: TeacherLabelSource,
    settings: LabellerSettings,
    name_of: Callable[[int], str],
    advance: Callable[[], None],
    report: LabelReport,
) -> LabelReport:
    def on_result(frame_id: int, rejection: LabelRejected | None) -> None:
        if rejection is not None:
            report.failed[name_of(frame_id)] = rejection.detail or rejection.reason
        advance()

    labeller = Labeller(queue, source.label, settings, on_result)
    try:
        failing = labeller.label_all(_GIVE_UP_AFTER)
    except (TeacherUnavailable, TeacherUnreachableError, SuspectTeacherError) as error:
        raise TeacherUnreachableError(
            f"{error} {labeller.snapshot().labelled} images were labelled in this run, "
            f"{report.kept} before; nothing is lost: run the same command again to go on"
        ) from error
    report.labelled = labeller.snapshot().labelled
    for frame_id, failure in failing.items():
        report.failed[name_of(frame_id)] = str(failure)
        advance()
    return report


class _ImageToLabel:
    """An image of a data set, read when its bytes are asked for: in the labeller's thread."""

    frame_id = ""
    invalid_mask_png: bytes | None = None

    def __init__(self, data: LabelSource, index: int, stamp_ns: int) -> None:
        self.id = index
        self.stamp_ns = stamp_ns
        self._data = data

    @property
    def jpeg(self) -> bytes:
        """The image as PNG: it travels without loss."""
        try:
            return encode_png(self.view[0])
        except DatasetError as error:
            raise BadImageError(str(error)) from error

    @property
    def intrinsics(self) -> Intrinsics | None:
        """Of the image."""
        return self.view[1]

    @cached_property
    def view(self) -> tuple[RgbImage, Intrinsics | None]:
        """The image, uint8 RGB (H, W, 3), and its intrinsics; raises DatasetError."""
        return self._data.view(self.id)


class ImageQueue:
    """The images of a data set that have no map yet, and the folder that their maps go into.

    Args:
        data: the images.
        folder: claimed for the teacher.
        waiting: indices of the images without a map.
        teacher: whose maps these are.
        options: `rate_hz` and `skip_bad` count here.
    """

    def __init__(
        self,
        data: LabelSource,
        folder: MapFolder,
        waiting: Sequence[int],
        teacher: TeacherIdentity,
        options: LabelOptions,
    ) -> None:
        self._data = data
        self._folder = folder
        self._teacher = teacher
        self._skip_bad = options.skip_bad
        self._stamps = data.stamps_ns(options.rate_hz)
        self._lock = threading.Lock()  # guards what follows
        self._waiting = dict.fromkeys(waiting)
        self._asked: dict[int, _ImageToLabel] = {}

    def unlabelled(self, limit: int, skip: Collection[int] = ()) -> list[_ImageToLabel]:
        """Return up to `limit` images without a map, in the order of the data set."""
        with self._lock:
            found = itertools.islice((i for i in self._waiting if i not in skip), limit)
            images = [_ImageToLabel(self._data, i, self._stamps[i]) for i in found]
            self._asked.update((image.id, image) for image in images)
            return images

    def put_label(self, frame_id: int, label: Label) -> None:
        """Write a map.

        Raises:
            TeacherChangedError: it is another teacher's.
            BadDepthError: the layout cannot hold such depth.
            LabelFolderError: the disk refuses.
        """
        known, depth = self._teacher, label.depth
        if (label.teacher_name, label.teacher_version) != (known.name, known.version):
            raise TeacherChangedError(
                f"the teacher is now {label.teacher_name} {label.teacher_version}, it was "
                f"{known.name} {known.version}: labels of two teachers are not mixed; start anew "
                "with --output or --overwrite"
            )
        if self._folder.map_format.at_image_size:
            height, width = self._asked[frame_id].view[0].shape[:2]
            depth = resize_depth(depth, height, width)
        self._folder.put(self._data.teacher_file(frame_id), depth)
        self._remove(frame_id)

    def reject(self, frame_id: int, reason: str) -> None:
        """Leave an image without a map; DatasetError if it is unreadable and `skip_bad` is off."""
        if reason == UNREADABLE and not self._skip_bad:
            self._data.view(frame_id)  # says once more why
        self._remove(frame_id)

    def _remove(self, frame_id: int) -> None:
        with self._lock:
            del self._waiting[frame_id], self._asked[frame_id]
